"""The whole pipeline with its store in an object storage, a real S3 server, from a config to the report."""

from pathlib import Path
from typing import Any

import yaml

from tests.moto_server import KEY, SECRET, moto_server, objects, using
from tests.workflow.conftest import REPOSITORY, run

BENCH = {"features": 20, "sites": {"p": 16, "r": 16}, "rows": 800, "sparsity": 0.9, "interference": 0.3}


def test_from_a_config_to_the_report(tmp_path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/bench-small.yaml").read_text())
    config["harvests"]["bench"]["bench"] = BENCH
    spec = config["dictionaries"]["topk"] | {"latents": 48, "tokens": 4000, "batch": 200}
    config["dictionaries"] = {"topk": {name: value for name, value in spec.items() if name != "vary"}}
    config["stores"] = "s3://bucket/prefix"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with moto_server() as variables, using(variables):
        done = run(tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        stored = objects("bucket/prefix/tiny/bench/activations.zarr")
    results = tmp_path / "results/tiny"
    assert stored.keys() >= {"zarr.json", "sites/p/zarr.json", "statistics/rows/c/0"}
    assert sorted(path.name for path in (results / "harvest/bench").iterdir() if path.name != ".lock") == [
        "activations.manifest.json"
    ]
    assert {path.name for path in (results / "report").glob("*.html")} >= {"index.html", "recovery.html", "theory.html"}
    assert (results / "recovery.csv").is_file()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for secret in (KEY, SECRET):
        assert secret not in done.stdout + done.stderr
        assert [str(path) for path, data in files.items() if secret.encode() in data] == []
        assert [name for name, data in stored.items() if secret.encode() in data] == []


def test_a_secret_in_the_config_is_refused_and_not_repeated(tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs/bench-small.yaml").read_text())
    config["stores"] = f"s3://{KEY}:{SECRET}@bucket/prefix"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = run(tmp_path)
    assert done.returncode != 0
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "stores: s3://***@bucket/prefix: " in said
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert not any(secret in done.stdout + done.stderr for secret in (KEY, SECRET))
