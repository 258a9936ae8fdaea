"""What the models of an experiment take, from their configs, wherever these are."""

import pathlib
import shutil
import tempfile
from collections.abc import Mapping

from analyze.experiment import Experiment
from harvest.config import CorpusSpec, ModelSpec
from harvest.errors import NotKnown, UserError
from harvest.footprint import footprint_of
from harvest.plan import Footprint, Sites


class Footprints:
    """The footprint of every harvest's model. `architectures`: a model's name -> a file that is its config.json."""

    def __init__(self, experiment: Experiment, architectures: Mapping[str, pathlib.Path]) -> None:
        self.experiment, self.architectures = experiment, architectures
        if unknown := sorted(set(architectures) - set(experiment.models)):
            raise UserError(
                f"--architecture: {unknown[0]}: no such model; there are {', '.join(experiment.models) or 'none'}"
            )
        self.found: dict[str, Footprint | NotKnown] = {}

    def look(self, name: str) -> tuple[Sites, Footprint]:
        if name not in self.found:
            self.found[name] = self._look(name)
        if isinstance(found := self.found[name], NotKnown):
            raise found
        return found.sites, found

    def _look(self, name: str) -> Footprint | NotKnown:
        harvest = self.experiment.model_harvests[name]
        corpus = self.experiment.corpora[harvest.corpus]
        with tempfile.TemporaryDirectory() as folder:
            try:
                model = self._model(harvest.model, pathlib.Path(folder))
                return footprint_of(model, harvest, corpus.context if isinstance(corpus, CorpusSpec) else None)
            except NotKnown as error:
                how = f"or give its config: --architecture {harvest.model}=config.json"
                return NotKnown(f"{error}; {how}")
            except UserError as error:
                raise UserError(f"harvests.{name}: {error}") from None

    def _model(self, name: str, folder: pathlib.Path) -> ModelSpec:
        spec, file = self.experiment.models[name], self.architectures.get(name)
        elsewhere = {"wheel": None, "sha256": None}
        if file is not None:
            try:
                shutil.copyfile(file, folder / "config.json")
            except OSError as error:
                raise UserError(f"--architecture: {file}: cannot be read ({error.strerror})") from None
            return spec.model_copy(update={**elsewhere, "id": str(folder), "gguf": None, "revision": None})
        made = pathlib.Path("resources/models") / name
        if spec.wheel is not None and made.is_dir():
            return ModelSpec(id=str(made), dtype=spec.dtype)
        if spec.gguf is not None and not pathlib.Path(spec.id).expanduser().is_dir():
            raise NotKnown(f"model {spec.id}: its config lies in {spec.gguf}, with its weights")
        return spec.model_copy(update=elsewhere)
