"""The documentation of the installed Python packages: docstrings, read from their sources; nothing is imported."""

import ast
import difflib
import hashlib
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

from harvest.config import CorpusSpec
from harvest.corpora.documents import Document, LeftOut
from harvest.errors import UserError

# Some 300,000 tokens and 75 packages, parsed in five seconds: a long file's docstrings spread among many others.
FILES_IN_A_BLOCK = 1024


def documents(spec: CorpusSpec, left_out: LeftOut) -> Iterator[Document]:
    """Docstrings of modules, classes and functions, each labelled with its top-level package; duplicates only once.

    Parsing everything takes minutes, so this reads as far as it is asked to. Files come in the order of the SHA-256 of
    their path in site-packages, a block at a time, and a block's docstrings in the order of the SHA-256 of their name
    and text: any stretch mixes many packages, and the order depends on nothing but the packages' contents.
    `left_out` takes what was read and not yielded.
    Raises `UserError` for a package that is not installed.
    """
    assert spec.documentation is not None
    files = _files(spec.documentation)
    seen: set[bytes] = set()
    for start in range(0, len(files), FILES_IN_A_BLOCK):
        block: list[Document] = []
        for module, file in files[start : start + FILES_IN_A_BLOCK]:
            block += _documents_in(module, file, left_out)
        for document in sorted(block, key=lambda document: _digest(document.name, document.text)):
            reason = _reason_to_leave_out(document, spec, seen)
            if reason is None:
                yield document
            else:
                left_out.add(reason, document.name)


def site_packages() -> list[pathlib.Path]:
    """Where this environment's packages are; the standard library is elsewhere."""
    folders = dict.fromkeys(pathlib.Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))
    return [folder for folder in folders if folder.is_dir()]


def _files(wanted: str | list[str]) -> list[tuple[str, pathlib.Path]]:
    """(module name, file) for every source file of the wanted packages, in the order they are read."""
    packages = _packages()
    for name in wanted if isinstance(wanted, list) else []:
        if name not in packages:
            known = difflib.get_close_matches(name, packages) or sorted(packages)[:5]
            raise UserError(
                f"documentation: {name!r} is not installed here under that import name; known are {', '.join(known)}, …"
            )
    files: dict[str, pathlib.Path] = {}
    for name in packages if wanted == "installed" else wanted:
        for folder, entry in packages[name]:
            for file in entry.rglob("*.py") if entry.is_dir() else [entry]:
                files.setdefault(file.relative_to(folder).as_posix(), file)
    return [(_module_name(path), files[path]) for path in sorted(files, key=_digest)]


def _packages() -> dict[str, list[tuple[pathlib.Path, pathlib.Path]]]:
    """Import name -> (site-packages folder, the package's folder or file in it)."""
    packages: dict[str, list[tuple[pathlib.Path, pathlib.Path]]] = {}
    for folder in site_packages():
        for entry in folder.iterdir():
            if not (entry.is_dir() or entry.suffix == ".py"):
                continue
            name = entry.name.removesuffix(".py")
            # Double underscores: caches, and the finders of editable installs, which hold paths of this machine.
            if name.isidentifier() and not name.startswith("__"):
                packages.setdefault(name, []).append((folder, entry))
    return packages


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _documents_in(module: str, file: pathlib.Path, left_out: LeftOut) -> Iterator[Document]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        left_out.add("files that do not parse", module)
        return
    package = module.partition(".")[0]
    for name, text in _docstrings(tree, module):
        yield Document(text, {"package": package}, name)


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """(dotted name, cleaned docstring) of the module and all classes and functions in it, however deep."""
    pending: list[tuple[ast.AST, str]] = [(tree, module)]
    while pending:
        node, name = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{name}.{node.name}"
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield name, text
        # Definitions are statements, or in one (`if`, `try`, `match`); expressions hold none.
        inner = (ast.stmt, ast.excepthandler, ast.match_case)
        pending += [(child, name) for child in ast.iter_child_nodes(node) if isinstance(child, inner)]


def _reason_to_leave_out(document: Document, spec: CorpusSpec, seen: set[bytes]) -> str | None:
    if len(document.text) < spec.minimum_characters:
        return "documents too short"
    try:
        document.text.encode()
    except UnicodeEncodeError:  # an escape such as "\ud800" in the source
        return "documents that are not Unicode text"
    digest = _digest(document.text)
    if digest in seen:
        return "documents seen before"
    seen.add(digest)
    return None


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
