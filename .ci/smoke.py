"""Is an installed wheel complete, and alone with what it depends on?  Run in an empty venv.

``smoke.py [EXTRA]``: the one extra that it was installed with, if any.
"""

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import kombu

import kombu_cfqueues

EXTRA = sys.argv[1] if len(sys.argv) > 1 else ""


def canonical(name: str) -> str:
    """A distribution's name in the one form that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(name: str, extra: str = "") -> set[str]:
    """The names of what a distribution depends on, with one of its extras."""
    names = set()
    for requirement in metadata.requires(name) or []:
        distribution, _, marker = requirement.partition(";")
        extras = re.findall(r"extra == ['\"](.*?)['\"]", marker)
        if not extras or extra in extras:
            names.add(canonical(re.match(r"[\w.-]+", distribution)[0]))
    return names


def needed(name: str, extra: str) -> set[str]:
    """A distribution and all that it depends on."""
    names, waiting = {name}, required(name, extra)
    while waiting:
        name = waiting.pop()
        if name in names:
            continue
        try:
            waiting |= required(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        names.add(name)
    return names


def run_cfqueues(*arguments: str) -> str:
    """What the command prints."""
    command = [Path(sys.executable).with_name("cfqueues"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def use_celery() -> None:
    """The application finds its transport by the broker URL alone."""
    program = """
from celery import Celery

app = Celery(broker=f"cfqueues://{'0' * 32}:token@/")
with app.connection_for_write() as connection:
    print(type(connection.transport).__module__)
"""
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert printed == "kombu_cfqueues.transport.transport\n", printed


def use_cli() -> None:
    """The command names its subcommands."""
    assert "spool" in run_cfqueues("--help")


def use_emulator() -> None:
    """A message is published, and there; the hub and the page's files are, too."""
    from kombu_cfqueues.emulator import Emulator

    with Emulator() as emulator, kombu.Connection(emulator.broker_url) as connection:
        connection.Producer().publish({"hello": "world"}, routing_key="greetings")
        assert emulator.messages("greetings")[0].content == {"hello": "world"}
        use_hub(emulator.control_url)
    static = resources.files("kombu_cfqueues").joinpath("emulator/static")
    assert any(file.name.endswith(".html") for file in static.iterdir())
    assert "--port" in run_cfqueues("emulator", "--help")


def use_hub(url: str = "cfhub://:token@127.0.0.1:9/shop") -> None:
    """The hub is a transport, and works where there is one."""
    with kombu.Connection(url) as connection:
        assert "fanout" in connection.transport.implements.exchange_type
        if EXTRA == "emulator":
            connection.connect()


assert required("kombu-cfqueues") == {"kombu", "requests", "vine"}
installed = {canonical(found.metadata["Name"]) for found in metadata.distributions()}
unneeded = installed - needed("kombu-cfqueues", EXTRA) - {"pip", "setuptools", "wheel"}
assert not unneeded, f"installed, and nothing needs it: {unneeded}"

assert metadata.version("kombu-cfqueues") == kombu_cfqueues.__version__
assert resources.files("kombu_cfqueues").joinpath("py.typed").is_file()
with kombu.Connection(f"cfqueues://{'0' * 32}:token@/") as connection:
    assert isinstance(connection.transport, kombu_cfqueues.Transport)
    assert connection.as_uri() == f"cfqueues://{'0' * 32}:**@api.cloudflare.com/"
use = {"celery": use_celery, "cli": use_cli, "emulator": use_emulator, "hub": use_hub}.get(EXTRA)
if use:
    use()

print(
    f"kombu-cfqueues[{EXTRA}] {kombu_cfqueues.__version__} works with",
    ", ".join(f"{name} {metadata.version(name)}" for name in sorted(installed - {"pip"})),
)
