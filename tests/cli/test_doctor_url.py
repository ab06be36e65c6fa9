"""``cfqueues doctor`` on a broker URL that Kombu cannot take apart: it says what to encode."""

import pytest

ACCOUNT = "0123456789abcdef0123456789abcdef"
SECRET = "s3cretPartOfTheToken"


@pytest.mark.parametrize("sign", "/?#")
@pytest.mark.parametrize("begin", ["", "ab", "12345"])
def test_a_token_that_is_not_percent_encoded(run, sign, begin):
    """An application gets a bare `ValueError` of Kombu's for it, with a part of the token."""
    done = run(f"cfqueues://{ACCOUNT}:{begin}{sign}{SECRET}@/", "doctor", code=1)

    assert "percent-encode the token" in done.out
    assert SECRET not in done.out + done.err


@pytest.mark.parametrize("url", ["cfqueues:/{}:{}@/", "cfqueues:{}:{}@/", "{}:{}@/", "{}@{}"])
def test_a_url_without_a_scheme(run, url):
    done = run(url.format(ACCOUNT, SECRET), "doctor", code=1)

    assert "cfqueues://ACCOUNT_ID:API_TOKEN@/" in done.out
    assert SECRET not in done.out + done.err
