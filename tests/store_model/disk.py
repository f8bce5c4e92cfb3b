"""A file system in memory, with the promises of `Files`; and one start's view of it, which may end at any call."""

from collections.abc import Callable
from typing import Any


class Disk:
    """Files by their paths. Folders are there because of what is in them."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def plain(self, path: str) -> str | None:
        return None

    def exists(self, path: str) -> bool:
        return path in self.files or self.is_folder(path)

    def is_folder(self, path: str) -> bool:
        return any(name.startswith(f"{path}/") for name in self.files)

    def resolved(self, path: str) -> str:
        return path

    def list_names(self, folder: str) -> list[str]:
        below = f"{folder}/"
        return sorted({name[len(below) :].split("/", 1)[0] for name in self.files if name.startswith(below)})

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def write(self, path: str, text: str) -> None:
        self.files[path] = text

    def create(self, path: str, text: str) -> bool:
        return self.files.setdefault(path, text) is text

    def rename(self, source: str, target: str) -> bool:
        if self.exists(target):
            return False
        moved = [name for name in self.files if name == source or name.startswith(f"{source}/")]
        if not moved:
            raise FileNotFoundError(source)
        for name in moved:
            self.files[target + name[len(source) :]] = self.files.pop(name)
        return True

    def delete(self, path: str) -> None:
        for name in [name for name in self.files if name == path or name.startswith(f"{path}/")]:
            del self.files[name]

    def size(self, folder: str) -> int:
        return sum(len(text) for name, text in self.files.items() if name.startswith(f"{folder}/"))


class View:
    """A file system as one start sees it: before each call, which `pause` is told, it may be suspended or killed."""

    def __init__(self, files: Any, pause: Callable[[str, str], None]) -> None:
        self._files, self._pause = files, pause

    def __getattr__(self, name: str) -> Callable[..., Any]:
        done = getattr(self._files, name)
        if name in ("plain", "resolved"):
            return done

        def paused(*arguments: Any) -> Any:
            self._pause(name, arguments[1 if name == "rename" else 0])
            return done(*arguments)

        return paused
