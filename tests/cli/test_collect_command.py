"""The verb `collect` before anything is sent."""

import pytest
from resilience_cli import exits
from resilience_cli.main import run

from resilience.testing import DeadPort


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(("scheme", "code"), [("https", exits.CONFIG), ("http", exits.TRANSIENT)])
def test_certificates_that_are_not_there_fail_no_url_for_good(tmp_path, monkeypatch, capsys, name, scheme, code):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    with DeadPort() as dead:
        (tmp_path / "urls.txt").write_text(f"{scheme}://127.0.0.1:{dead.port}/\n")
        assert run(["collect", str(tmp_path / "urls.txt"), "--attempts", "1"]) == code
    assert (name in capsys.readouterr().err) == (code == exits.CONFIG)
    assert (tmp_path / "urls.txt.journal.jsonl").exists() == (code == exits.TRANSIENT)
