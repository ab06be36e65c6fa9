"""Is an installed wheel complete, and alone with what it depends on?  Run in an empty venv."""

import re
from importlib import metadata, resources

import kombu

import kombu_cfqueues


def needed(name: str) -> set[str]:
    """The names of a distribution and of all that it depends on without extras."""
    names, waiting = set(), [name]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in names:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        names.add(name)
        waiting += [
            re.match(r"[\w.-]+", requirement)[0]
            for requirement in requirements
            if "extra ==" not in requirement
        ]
    return names


direct = {
    re.match(r"[\w.-]+", requirement)[0]
    for requirement in metadata.requires("kombu-cfqueues")
    if "extra ==" not in requirement
}
assert direct == {"kombu", "requests", "vine"}, direct

installed = {
    re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
    for distribution in metadata.distributions()
}
unneeded = installed - needed("kombu-cfqueues") - {"pip", "setuptools", "wheel"}
assert not unneeded, f"installed, and nothing needs it: {unneeded}"

assert metadata.version("kombu-cfqueues") == kombu_cfqueues.__version__
assert resources.files("kombu_cfqueues").joinpath("py.typed").is_file()
with kombu.Connection(f"cfqueues://{'0' * 32}:token@/") as connection:
    assert isinstance(connection.transport, kombu_cfqueues.Transport)
    assert connection.as_uri() == f"cfqueues://{'0' * 32}:**@api.cloudflare.com//"

print(
    f"kombu-cfqueues {kombu_cfqueues.__version__} imports with",
    ", ".join(f"{name} {metadata.version(name)}" for name in sorted(direct)),
)
