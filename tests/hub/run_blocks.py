"""Run blocks of Python in a process of their own, each in a namespace of its own, and report what became of each.

    python run_blocks.py [--without-package] < blocks.json > outcomes.json

`blocks.json`: {name: code}. The outcome of a block is {"result": what it left in `result`} or {"error": "Type: text"}.
"""

import contextlib
import hashlib
import importlib.abc
import json
import sys


class PackageIsMissing(importlib.abc.MetaPathFinder):
    """Makes Python as it is where diffusers-lightningdit was never installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "diffusers_lightningdit":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def check_package_is_missing() -> None:
    with contextlib.suppress(ImportError):
        import diffusers_lightningdit  # noqa: F401

        raise AssertionError("diffusers_lightningdit can be imported")


def digest(pipe) -> str:
    """Equal for pipelines that draw the same images; names where the code of each part comes from."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        ["seven", 3], generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np"
    ).images
    return hashlib.sha256((images * 1e4).round().tobytes()).hexdigest()


def origin(thing) -> str:
    """First part of the module of an object's class: diffusers_lightningdit, or diffusers_modules for remote code."""
    return type(thing).__module__.partition(".")[0]


def main() -> None:
    blocks = json.load(sys.stdin)
    outcomes = {}
    with contextlib.redirect_stdout(sys.stderr):
        if "--without-package" in sys.argv:
            sys.meta_path.insert(0, PackageIsMissing())
            check_package_is_missing()
        for name, code in blocks.items():
            namespace = {"digest": digest, "origin": origin}
            try:
                exec(compile(code, name, "exec"), namespace)
            except (Exception, SystemExit) as error:
                outcomes[name] = {"error": f"{type(error).__name__}: {error}"}
            else:
                outcomes[name] = {"result": namespace.get("result")}
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
