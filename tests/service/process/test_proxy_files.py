"""What the shipped nginx configuration and compose file say, against the server's own settings."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from proxy_process import COMPOSE, TEMPLATE, defaults

from service.errors import ERROR_KINDS
from service.security.access import ACCESS
from service.settings import Settings

#: What nginx alone says, beside codes of the server's own table.
PROXY_CODES = {"server_unreachable": 503}


def test_every_value_of_the_template_has_a_default_in_compose() -> None:
    named = set(re.findall(r"\$\{(\w+)\}", TEMPLATE.read_text(encoding="utf-8")))
    assert named == set(defaults())


def test_the_values_fit_the_servers_own() -> None:
    values, own = defaults(), Settings()
    assert int(values["PROXY_MAX_BODY_BYTES"]) == own.max_body_bytes
    assert int(values["PROXY_MAX_JOB_BYTES"]) == getattr(own, "max_job_bytes", 256 * 2**20)
    assert float(values["PROXY_ANSWER_TIMEOUT_S"]) > own.request_timeout_s
    (keep,) = re.findall(r"^\s+keepalive_timeout (\d+)s;\n    \}", TEMPLATE.read_text(encoding="utf-8"), re.M)
    assert float(keep) < own.keep_alive_s


def test_compose_puts_the_proxy_where_the_server_believes_it() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    base = yaml.safe_load((COMPOSE.parent / "compose.yaml").read_text(encoding="utf-8"))["services"]
    proxy, values = services.pop("proxy"), defaults()
    assert set(services) == set(base) == set(proxy["profiles"]) == set(proxy["depends_on"])
    for service in services.values():
        trusted = Settings(trusted_proxies=service["environment"]["LAPLORA_TRUSTED_PROXIES"]).trusted_proxies
        assert trusted == f"{proxy['networks']['inside']['ipv4_address']}/32"
        assert values["PROXY_UPSTREAM"] == f"{service['networks']['inside']['ipv4_address']}:{Settings().port}"
    assert proxy["ports"][0].endswith(f":{values['PROXY_PORT']}")
    template, certificates = ((volume["source"], volume["target"]) for volume in proxy["volumes"])
    assert (COMPOSE.parent / template[0]).samefile(TEMPLATE)
    assert f"{proxy['environment']['NGINX_ENVSUBST_OUTPUT_DIR']}/{Path(template[1]).stem}" in proxy["command"]
    for name in ("PROXY_CERTIFICATE", "PROXY_CERTIFICATE_KEY"):
        assert Path(values[name]).parent == Path(certificates[1])
    assert proxy["read_only"]
    assert [mount.partition(":")[0] for mount in proxy["tmpfs"]] == [values["PROXY_TEMP"]]


def test_all_bodies_at_their_limit_fit_the_folder_for_bodies() -> None:
    (mount,) = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["proxy"]["tmpfs"]
    (mebibytes,) = re.findall(r":size=(\d+)m,", mount)
    values = {name: int(value) for name, value in defaults().items() if value.isdigit()}
    bodies = values["PROXY_BODIES"] * values["PROXY_MAX_BODY_BYTES"]
    uploads = values["PROXY_UPLOADS"] * values["PROXY_MAX_JOB_BYTES"]
    assert values["PROXY_UPLOADS"] >= 4
    assert bodies + uploads < int(mebibytes) * 2**20
    # Answers must not be there too: those of results have no limit.
    assert "proxy_max_temp_file_size 0;" in TEMPLATE.read_text(encoding="utf-8")


def test_codes_are_the_servers_with_the_same_status_or_the_proxys_own() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    (table,) = re.findall(r"map \$status \$error_code \{(.*?)\}", text, re.S)
    sent = dict(line.rstrip(";").split() for line in table.strip().splitlines())
    known = {kind.code: kind.status for kind in ERROR_KINDS} | PROXY_CODES
    assert sent.pop("default") == "malformed_http"
    assert {code: int(status) for status, code in sent.items()} == {code: known[code] for code in sent.values()}
    (messages,) = re.findall(r"map \$status \$error_message \{(.*?)\n    \}", text, re.S)
    assert set(re.findall(r"^\s+(\d+|default) ", messages, re.M)) == {*sent, "default"}


def test_all_that_needs_the_scope_of_an_administrator_is_below_artifacts() -> None:
    assert {endpoint.split("/")[1] for endpoint, need in ACCESS.items() if need == "admin"} == {"artifacts"}
