"""What the commands on containers have in common: where containers are, and variables for them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lazyfs.config import Config
from lazyfs.container.places import ContainerPlaces
from lazyfs.container.process import parse_env, parse_env_file
from lazyfs.errors import ContainerError


def container_places(config: Config) -> ContainerPlaces:
    """Where the containers of a cache live."""
    return ContainerPlaces(config.cache_dir.resolve() / "containers")


def variables(files: Iterable[Path], words: Iterable[str], environment: Mapping[str, str]) -> Iterator[str]:
    """NAME=VALUE pairs of --env-file and --env, in the order in which they count: the last of a name wins.

    Raises:
        ContainerError: a file is not UTF-8, or what stands there or in a word is no variable.
        OSError: a file cannot be read.
    """
    for file in files:
        try:
            yield from parse_env_file(file.read_bytes().decode("utf-8"), environment)
        except UnicodeDecodeError:
            raise ContainerError(f"{file}: variables are UTF-8, one NAME=VALUE a line") from None
        except ContainerError as error:
            raise ContainerError(f"{file}: {error}") from None
    for word in words:
        yield from parse_env(word, environment)
