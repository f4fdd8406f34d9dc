"""Where arms keep their labels: one ledger of each, wherever the config says, and no other's."""

from __future__ import annotations

from pathlib import Path

import pytest
from postgres_server import PostgresServer, postgres
from tiny_run import run_python

from launch import annotate
from launch.comparing.units import Unit, unit_ledger
from launch.stages.ledgers import ArmLedger, LedgerConfig
from launch.stages.settings import Settings
from lsb.ledger import LOCATION_FILE, Round
from lsb.selection import CHOSEN
from vlmae.config import compose_config

__all__ = ["postgres"]  # a fixture

URL = "postgresql+psycopg://me@db/growth?options=-csearch_path%3D"


def record(ledger: ArmLedger, number: int, arm: str) -> None:
    with ledger.open() as held:
        held.record_round(Round(number, arm, "", ""), CHOSEN.empty_table(), None)


def settings_of(*overrides: str) -> Settings:
    return Settings.from_config(compose_config("round", ["experiment=tiny", *overrides]))


def test_by_default_it_is_a_file_in_the_arms_folder(tmp_path: Path) -> None:
    ledger = LedgerConfig().of_arm(tmp_path / "run", "lsb")
    assert not ledger.exists
    record(ledger, 0, "first")
    assert ledger.location == str(tmp_path / "run" / "lsb" / "ledger.sqlite")
    assert ledger.exists
    assert [path.name for path in (tmp_path / "run" / "lsb").iterdir()] == ["ledger.sqlite"]


def test_a_location_is_filled_for_every_arm_and_unit(tmp_path: Path) -> None:
    config, run = LedgerConfig(f"{URL}{{name}}.{{arm}}.{{unit}}"), tmp_path / "run"
    assert config.of_arm(run, "lsb").location == f"{URL}run.lsb.lsb"
    unit = Unit("scoring", "lsb", 3)
    ledger = unit_ledger(config, run, unit)
    assert ledger.location == f"{URL}run.lsb.scoring.lsb.3"
    assert ledger.folder == run / "units" / "scoring.lsb.3"


def test_a_location_changes_no_identity() -> None:
    plain, elsewhere = settings_of(), settings_of(f'ledger.location="{URL}{{arm}}"')
    assert "location" not in plain.identity["ledger"]
    assert elsewhere.identity == plain.identity
    assert elsewhere.merge == plain.merge
    assert elsewhere.ledger.location == f"{URL}lsb_lt"


def test_a_comparison_needs_a_ledger_for_each_unit() -> None:
    LedgerConfig().require_units()
    LedgerConfig("{unit}.sqlite").require_units()
    with pytest.raises(ValueError, match=r"put \{unit\} into it"):
        LedgerConfig("{name}_{arm}.sqlite").require_units()


def test_an_arm_goes_on_with_its_own_ledger_only(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", LedgerConfig(str(tmp_path / "{arm}.sqlite"))
    record(elsewhere.of_arm(run, "lsb"), 0, "first")
    record(elsewhere.of_arm(run, "lsb"), 1, "lsb")  # again, with rounds
    assert elsewhere.of_arm(run, "lsb").exists
    for other in (LedgerConfig(), LedgerConfig(str(tmp_path / "new.sqlite"))):
        for use in (ArmLedger.claim, ArmLedger.open, lambda ledger: ledger.exists):
            with pytest.raises(ValueError, match=r"arm lsb keeps its ledger at .*lsb\.sqlite"):
                use(other.of_arm(run, "lsb"))
    record(LedgerConfig().of_arm(run, "random"), 0, "first")
    with pytest.raises(ValueError, match=r"arm random keeps its ledger at .*was moved"):
        elsewhere.of_arm(run, "random").claim()
    assert not (tmp_path / "random.sqlite").exists()
    assert not (tmp_path / "new.sqlite").exists()


def test_a_ledger_belongs_to_one_arm_of_one_run(tmp_path: Path) -> None:
    config = LedgerConfig(str(tmp_path / "growth.sqlite"))
    record(config.of_arm(tmp_path / "a", "lsb"), 0, "first")
    with pytest.raises(ValueError, match=r"holds rounds of another run.*\{name\} and \{arm\}"):
        config.of_arm(tmp_path / "b", "lsb").claim()
    record(config.of_arm(tmp_path / "a", "lsb"), 1, "lsb")
    with pytest.raises(ValueError, match=r"holds rounds of arm lsb, .*one arm of one run"):
        config.of_arm(tmp_path / "a", "random").claim()
    assert not (tmp_path / "b").exists()
    note = tmp_path / "a" / "lsb" / LOCATION_FILE
    line = note.read_text()
    note.unlink()  # as where the run's folder was lost
    with pytest.raises(ValueError, match=f"write the line .*growth.sqlite into {note}"):
        config.of_arm(tmp_path / "a", "lsb").claim()
    note.write_text(line)
    config.of_arm(tmp_path / "a", "lsb").claim()


def test_what_nobody_has_written_is_not_annotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ("oracle=files", "arms=[]")
    for more in ((), ("ledger.location=growth.sqlite",)):
        with pytest.raises(ValueError, match="with the same overrides until"):
            annotate.status(settings_of(*overrides, *more), print)
    assert list(tmp_path.iterdir()) == []


def test_an_absent_database_is_one_line_before_anything_is_made(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    absent = postgres.new_database().replace("/ledger", "/absent")
    refused = run_python(
        "-m", "launch.round", "experiment=tiny", "arms=[]", f'ledger.location="{absent}"',
        cwd=tmp_path,
    )  # fmt: skip
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "createdb" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_ledger_for_a_comparison_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    refused = run_python(
        "-m", "launch.compare", "experiment=tiny", "arm=entropy",
        'ledger.location="growth_{arm}.sqlite"', cwd=tmp_path,
    )  # fmt: skip
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "put {unit} into it" in refused.stderr
    assert list(tmp_path.iterdir()) == []
