"""Where everything of a registry lies, below its folder."""

from pathlib import Path


class Layout:
    """Paths of one registry, whether they are there or not.

    Attributes:
        root: Its folder, `.plyfold`.
        objects: `<hex>/` of each adapter.
        refs: `<curriculum>/<stage number or merges>/<alias>`.
        attest: `<hex>/` of what was learnt about an adapter later.
        cache: What can be made again.
        tmp: What is in the making.
        locks: Lock files.
        lock: The one lock of the store.
        leases: What running servers use, among the locks.
        log: Every publish and move of a name.
        locations: Where bases and rows lie on this machine.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects" / "sha256"
        self.refs = root / "refs"
        self.attest = root / "attest"
        self.cache = root / "cache"
        self.tmp = root / "tmp"
        self.locks = root / "locks"
        self.lock = self.locks / "refs.lock"
        self.leases = self.locks / "leases"
        self.log = root / "log.jsonl"
        self.locations = root / "locations.json"

    @property
    def folders(self) -> tuple[Path, ...]:
        """What a new registry is made of."""
        return self.objects, self.refs, self.attest, self.tmp, self.locks, self.cache
