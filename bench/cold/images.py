"""The images of the built-in workloads, made once from Debian, PyPI and npm packages.

A recipe is a folder `bench/cold/recipes/NAME` with a Containerfile on the laboratory's base image. Beside it
may stand a `requirements.txt` or a `package.json`: what pip or npm makes of them is the folder `packages` of
the build's context. What is made lies under `.cache/bench`, under the hash of its recipe.
"""

import shutil
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from tests.support import lab_build
from tests.support.lab import BASE, Lab

RECIPES: Final = Path(__file__).with_name("recipes")
_VERSION: Final = "1"
_TAG: Final = "latest"


def recipe_names() -> list[str]:
    """The names of the images that can be made here."""
    return sorted(path.parent.name for path in RECIPES.glob("*/Containerfile"))


@dataclass(frozen=True, slots=True)
class Images:
    """OCI layouts, made when first asked for; any number of processes may ask at once.

    Attributes:
        store: where they are kept.
        lab: gives the base image.
    """

    store: Lab
    lab: Lab

    def recipe(self, name: str) -> Path:
        """The layout of a built-in image; its tag is "latest".

        Raises:
            LabError: there is no such recipe, or it cannot be made here.
        """
        return self.store.once(
            f"images/{name}-{_recipe_hash(name, self.lab)}", lambda out: self._make(name, out)
        )

    def copy(self, source: str, *options: str) -> Path:
        """The layout of any other image, copied once; its tag is "latest".

        Args:
            source: as skopeo names it: "docker://HOST/NAME:TAG", "oci:DIRECTORY:TAG", and others.
            options: of `skopeo copy`.

        Raises:
            LabError: skopeo cannot copy it.
        """
        tls = [option.replace("--src-", "--") for option in options]
        digest = lab_build.run("skopeo", "inspect", *tls, "--format", "{{.Digest}}", source).strip()
        name = sha256(f"{source}\0{digest}".encode()).hexdigest()[:12]
        copy = ("skopeo", "--insecure-policy", "copy", "--quiet", *options, source)
        return self.store.once(f"images/own{name}-0", lambda out: lab_build.run(*copy, f"oci:{out}:{_TAG}"))

    def _make(self, name: str, out: Path) -> None:
        context = out.with_suffix(".context")
        shutil.rmtree(context, ignore_errors=True)
        shutil.copytree(RECIPES / name, context)
        try:
            _install_packages(context)
            lab_build.build_image(
                context, out, parent=self.lab.image(BASE), downloads=self.store.home / "apt" / name
            )
        finally:
            shutil.rmtree(context)


def _install_packages(context: Path) -> None:
    """Make the folder `packages`, if the recipe wants one."""
    packages = context / "packages"
    requirements = context / "requirements.txt"
    if requirements.exists():
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries", "1")
        target = ("--target", str(packages), "--requirement", str(requirements))
        lab_build.run(*pip, "install", *target, "--only-binary=:all:", "--python-version=3.11", "--compile")
    if (context / "package.json").exists():
        packages.mkdir()
        shutil.copy(context / "package.json", packages)
        lab_build.run("npm", "install", "--no-audit", "--no-fund", "--omit=dev", cwd=packages)


def _recipe_hash(name: str, lab: Lab) -> str:
    """Changes with anything an image is made from but the packages.

    Raises:
        LabError: there is no such recipe.
    """
    if name not in recipe_names():
        raise lab_build.LabError(f"no image {name!r}: there are {', '.join(recipe_names())}")
    files = [path.read_bytes() for path in sorted((RECIPES / name).iterdir())]
    parts = [_VERSION.encode(), lab.image(BASE).name.encode(), *files]
    return sha256(b"\0".join(parts)).hexdigest()[:12]
