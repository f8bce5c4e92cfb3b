"""A file system in memory, with the promises of `Files`; and one start's view of it, which may end at any call."""

from collections.abc import Callable


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
    """The disk as one start sees it: before each call it may be suspended or killed."""

    def __init__(self, disk: Disk, pause: Callable[[], None]) -> None:
        self._disk, self._pause = disk, pause

    def plain(self, path: str) -> str | None:
        return None

    def exists(self, path: str) -> bool:
        self._pause()
        return self._disk.exists(path)

    def is_folder(self, path: str) -> bool:
        self._pause()
        return self._disk.is_folder(path)

    def resolved(self, path: str) -> str:
        return path

    def list_names(self, folder: str) -> list[str]:
        self._pause()
        return self._disk.list_names(folder)

    def read(self, path: str) -> str | None:
        self._pause()
        return self._disk.read(path)

    def write(self, path: str, text: str) -> None:
        self._pause()
        self._disk.write(path, text)

    def create(self, path: str, text: str) -> bool:
        self._pause()
        return self._disk.create(path, text)

    def rename(self, source: str, target: str) -> bool:
        self._pause()
        return self._disk.rename(source, target)

    def delete(self, path: str) -> None:
        self._pause()
        self._disk.delete(path)

    def size(self, folder: str) -> int:
        self._pause()
        return self._disk.size(folder)
