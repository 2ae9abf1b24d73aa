"""The key file: what it may say, changes that are seen while it is in use, and the commands that edit it."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from activities.toml_file import SettingsFileError
from api.cli.main import main
from api.tenants import keys as keys_module
from api.tenants.key_editing import create_key, revoke_key
from api.tenants.keys import KeyFile, TenantLimits, key_hash, parse_keys, read_keys

HASH = key_hash(b"secret")
OTHER = key_hash(b"other")


def entry(key_id: str = "key_1", tenant: str = "search", hashed: str = HASH) -> str:
    return f'[[keys]]\nid = "{key_id}"\ntenant = "{tenant}"\nhash = "{hashed}"\ncreated = 2026-11-21\n'


FILE = f"""\
# Who may use the batch server. Ask Ann before you add a tenant.

{entry()}
# Search has paid for more.
[tenants.search]
max_running_batches = 2   # two
max_queued_requests = 50_000
max_stored_bytes = 1_000_000
fairness_weight = 2

{entry("key_2", "ads", OTHER)}
# The end.
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_says_whose_a_key_is_and_what_its_tenant_may_use() -> None:
    ring = parse_keys(FILE, "f")
    assert (ring.tenant_of(b"secret"), ring.tenant_of(b"other")) == ("search", "ads")
    assert [ring.tenant_of(key) for key in (b"", b"Secret", b"secret ", HASH.encode(), b"\xff" * 70_000)] == [None] * 5
    limits = ring.limits("search")
    assert (limits.max_running_batches, limits.max_queued_requests) == (2, 50_000)
    assert (limits.max_stored_bytes, limits.fairness_weight) == (1_000_000, 2.0)
    assert ring.limits("ads") == TenantLimits()
    assert TenantLimits() == TenantLimits(
        max_running_batches=None, max_queued_requests=None, max_stored_bytes=None, fairness_weight=1.0
    )
    assert ring.keys[0].created == datetime.date(2026, 11, 21)
    assert parse_keys("", "f").tenant_of(b"secret") is None


def test_the_hash_is_sha256() -> None:
    assert key_hash(b"k") == "sha256:" + hashlib.sha256(b"k").hexdigest()


def test_every_key_is_compared_whole_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return real(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    ring = parse_keys(FILE, "f")
    assert ring.tenant_of(b"secret") == "search"
    assert ring.tenant_of(b"none") is None
    assert compared == [HASH.encode(), OTHER.encode()] * 2


WRONG = [
    (FILE + "[[keys", "line 23"),
    ("[[keys]]\nid = \n", "line 2"),
    (FILE.replace(HASH, "sha256:secret"), "line 6: keys key_1: hash"),
    (FILE.replace('"ads"', '"Ads"'), "line 18: keys key_2: tenant"),
    (FILE.replace('"ads"', '"../search"'), "line 18: keys key_2: tenant"),
    (FILE.replace('"ads"', '""'), "line 18: keys key_2: tenant"),
    (FILE.replace('"ads"', '"a/b"'), "line 18: keys key_2: tenant"),
    (FILE.replace('"ads"', f'"{"a" * 64}"'), "line 18: keys key_2: tenant"),
    (FILE.replace('"ads"', '"ads\\n"'), "line 18: keys key_2: tenant"),
    (FILE.replace('tenant = "ads"\n', ""), "line 16: keys key_2: tenant"),
    (FILE.replace("max_running_batches", "max_running_batchs"), "line 11: tenants: search: max_running_batchs"),
    (FILE.replace("= 2 ", '= "two" '), "line 11: tenants: search: max_running_batches"),
    (FILE.replace("= 2 ", "= -1 "), "line 11: tenants: search: max_running_batches"),
    (FILE.replace("weight = 2", "weight = 0"), "line 14: tenants: search: fairness_weight"),
    (FILE.replace("weight = 2", "weight = nan"), "line 14: tenants: search: fairness_weight"),
    (FILE.replace("[tenants.search]", "[tenants.Search]"), "line 10: tenants: Search"),
    (FILE.replace("key_2", "key_1"), "line 4: keys key_1: id: another key has the same"),
    (FILE.replace(OTHER, HASH), "line 6: keys key_1: hash: another key has the same"),
    ("[tenant.search]\n", "tenant"),
    ("keys = 7\n", "keys"),
]


@pytest.mark.parametrize(("text", "where"), WRONG)
def test_what_is_wrong_in_a_file_is_said_with_its_line(text: str, where: str) -> None:
    with pytest.raises(SettingsFileError) as caught:
        parse_keys(text, "keys.toml")
    message = str(caught.value)
    assert message.startswith("keys.toml")
    assert where in message
    assert "\n" not in message


def test_a_key_in_the_place_of_its_hash_is_not_repeated() -> None:
    with pytest.raises(SettingsFileError) as caught:
        parse_keys(FILE.replace(HASH, "eb_the-key-itself"), "f")
    assert "eb_the-key-itself" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys.toml"
    if content:
        path.write_bytes(content)
    with pytest.raises(SettingsFileError, match=r"keys\.toml: "):
        KeyFile(path)


def test_a_change_is_seen_within_a_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(entry())
    file = KeyFile(path, clock)
    path.write_text(entry() + entry("key_2", "search", OTHER))
    assert file.current().tenant_of(b"other") is None  # not looked at again so soon
    clock.now += 1
    with caplog.at_level(logging.INFO, "everbatch.api"):
        assert file.current().tenant_of(b"other") == "search"
    assert "2 keys" in caplog.text
    ring = file.current()
    clock.now += 1
    assert file.current() is ring  # unchanged, so not read

    # Replaced by a file of the same size and time, as `keys create` or a mounted secret does.
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_text(path.read_text().replace("key_2", "key_3"))
    os.utime(other, ns=times)
    other.replace(path)
    clock.now += 1
    assert [key.id for key in file.current().keys] == ["key_1", "key_3"]


def test_a_file_that_breaks_goes_on_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(entry())
    file = KeyFile(path, clock)
    for break_it in (lambda: path.write_text("[[keys"), path.unlink):
        break_it()
        caplog.clear()
        for _ in range(3):
            clock.now += 1
            assert file.current().tenant_of(b"secret") == "search"
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert str(path) in record.getMessage()
    path.write_text(entry(hashed=OTHER))
    clock.now += 1
    assert file.current().tenant_of(b"secret") is None


def test_a_new_key_is_appended_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    path.chmod(0o640)
    key, secret = create_key(path, "ads")
    text = path.read_text()
    assert text.startswith(FILE)
    assert secret not in text
    assert len(secret) == len("eb_") + 43  # 256 bits
    ring = read_keys(path)
    assert ring.tenant_of(secret.encode()) == "ads"
    assert ring.keys[2] == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.toml"]


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    _, first = create_key(path, "ads")
    _, second = create_key(path, "ads")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first != second
    ring = read_keys(path)
    assert [ring.tenant_of(key.encode()) for key in (first, second)] == ["ads", "ads"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.toml", tmp_path / "keys.toml"
    target.write_text(entry())
    link.symlink_to(target)
    create_key(link, "ads")
    assert link.is_symlink()
    assert len(read_keys(target).keys) == 2


def test_creators_do_not_undo_each_other(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(create_key, [path] * 24, [f"t{number}" for number in range(24)]))
    ring = read_keys(path)
    assert [ring.tenant_of(secret.encode()) for _, secret in made] == [f"t{number}" for number in range(24)]


def test_a_revoked_key_is_gone_and_comments_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    assert revoke_key(path, "key_1").tenant == "search"
    assert path.read_text() == FILE.replace(entry() + "\n", "")
    assert revoke_key(path, "key_2").tenant == "ads"
    ring = read_keys(path)
    assert ring.keys == []
    assert ring.limits("search").max_running_batches == 2
    assert [line for line in path.read_text().splitlines() if line.startswith("#")] == [
        line for line in FILE.splitlines() if line.startswith("#")
    ]
    with pytest.raises(SettingsFileError, match="no key has the id key_2"):
        revoke_key(path, "key_2")


def test_a_file_written_otherwise_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    text = f'keys = [{{id = "key_1", tenant = "search", hash = "{HASH}", created = 2026-11-21}}]\n'
    path.write_text(text)
    with pytest.raises(SettingsFileError):
        create_key(path, "ads")
    with pytest.raises(SettingsFileError, match="by hand"):
        revoke_key(path, "key_1")
    assert path.read_text() == text


def test_a_broken_file_and_a_bad_name_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("[[keys")
    with pytest.raises(SettingsFileError, match="line 1"):
        create_key(path, "ads")
    assert path.read_text() == "[[keys"
    for tenant in ("", "A", "a/b", 'a"\nid = "x', "-a", "a" * 64):
        with pytest.raises(SettingsFileError, match="is an invalid tenant name"):
            create_key(tmp_path / "new.toml", tenant)
    assert not (tmp_path / "new.toml").exists()
    with pytest.raises(SettingsFileError):
        create_key(tmp_path / "no" / "keys.toml", "ads")


def cli(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], env=env)


def test_the_commands(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.toml")
    created = cli("create", "--tenant", "search", "--file", path)
    assert created.exit_code == 0
    secret = created.stdout.strip()
    assert read_keys(Path(path)).tenant_of(secret.encode()) == "search"
    assert secret not in created.stderr
    key_id = created.stderr.split()[0]

    second = cli("create", "--tenant", "ads", EVERBATCH_KEYS_FILE=path).stdout.strip()
    listed = cli("list", EVERBATCH_KEYS_FILE=path)
    assert listed.stdout.startswith(key_id)
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["search", "ads"]
    assert secret not in listed.output

    revoked = cli("revoke", key_id, "--file", path)
    assert revoked.exit_code == 0
    ring = read_keys(Path(path))
    assert (ring.tenant_of(secret.encode()), ring.tenant_of(second.encode())) == (None, "ads")


def test_other_settings_are_not_in_the_way(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.toml")
    env = {"EVERBATCH_MAX_IN_FLIGHT": "many", "EVERBATCH_KEYS_FILE": path}
    assert cli("create", "--tenant", "search", **env).exit_code == 0
    assert "EVERBATCH_KEYS_FILE" in cli("list").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--tenant", "search"],
        ["create", "--tenant", "Search", "--file", "keys.toml"],
        ["list", "--file", "missing.toml"],
        ["revoke", "key_9", "--file", "missing.toml"],
    ],
)
def test_what_a_command_cannot_do_is_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert result.exit_code != 0
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert list(tmp_path.iterdir()) == []
