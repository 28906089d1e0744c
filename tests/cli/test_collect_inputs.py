"""Lists: what is read, what is refused by its line, which lines are one item."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resilience_cli.collect.inputs import InputError, host_of, read_items


def read(*lines):
    return read_items([line.encode() + b"\n" for line in lines], "urls.txt")


def refusals(*lines):
    with pytest.raises(InputError) as caught:
        read(*lines)
    return caught.value.problems


def test_blank_lines_comments_and_carriage_returns_are_skipped():
    listing = read("\ufeffhttp://a.test/1\r", "", "   ", "# http://no.test/", "  http://b.test:81/2  ")
    assert [(item.url, item.host) for item in listing.items] == [
        ("http://a.test/1", "a.test:80"),
        ("http://b.test:81/2", "b.test:81"),
    ]


def test_an_object_has_all_its_parts():
    (item,) = read(
        '{"url": "https://A.test/x", "method": "post", "headers": {"X-N": 3}, "body": "hi", "key": "k1"}'
    ).items
    assert (item.key, item.method, item.headers, item.body, item.host) == (
        "k1", "POST", {"X-N": "3"}, b"hi", "a.test:443",
    )  # fmt: skip
    assert not item.is_idempotent


def test_an_object_as_body_is_sent_as_json():
    (item,) = read('{"url": "http://a.test/", "method": "PUT", "body": {"n": 1}}').items
    assert json.loads(item.body) == {"n": 1}
    assert item.headers == {"Content-Type": "application/json"}


def test_a_url_and_its_object_are_one_item_and_any_difference_makes_two():
    listing = read(
        "http://a.test/",
        '{"url": "http://a.test/"}',
        '{"url": "http://a.test/", "method": "HEAD"}',
        '{"url": "http://a.test/", "headers": {"A": "1"}}',
        '{"url": "http://a.test/", "headers": {"a": "1"}}',
        '{"url": "http://a.test/", "body": ""}',
        "http://a.test/?",
    )
    assert len(listing.items) == 5
    assert listing.duplicates == 2


def test_the_same_key_is_the_same_item():
    listing = read('{"url": "http://a.test/1", "key": "k"}', '{"url": "http://a.test/2", "key": "k"}')
    assert [item.url for item in listing.items] == ["http://a.test/1"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.test/1", "not an http"),
        ("ftp://a.test/1", "not an http"),
        ("http:///1", "no host"),
        ("http://a.test:99999/", "not a URL"),
        ("http://a.test:0/", "port 0"),
        ("http://[::1/", "not a URL"),
        ("http://a.test/a b", "percent-encoded"),
        ("http://a..test/", "no host"),
        ("http://" + "a" * 64 + ".test/", "more than 63 characters"),
        ('{"url": "http://a.test/"', "not JSON"),
        ('{"uri": "http://a.test/"}', "unknown field 'uri', did you mean 'url'?"),
        ('{"method": "GET"}', 'expected "url"'),
        ('{"url": 5}', 'expected "url"'),
        ('{"url": "http://a.test/", "method": "G E T"}', '"method"'),
        ('{"url": "http://a.test/", "headers": ["a"]}', '"headers"'),
        ('{"url": "http://a.test/", "headers": {"a b": "c"}}', "name of a header"),
        ('{"url": "http://a.test/", "headers": {"a": "b\\nc: d"}}', "one line"),
        ('{"url": "http://a.test/", "headers": {"a": "\\u20ac"}}', "Latin-1"),
        ('{"url": "http://a.test/", "body": 5}', '"body"'),
        ('{"url": "http://a.test/", "body": "\\ud800"}', "surrogate"),
        ('{"url": "http://a.test/\\ud800"}', "surrogate"),
        ('{"url": "http://a.test/", "key": 7}', '"key"'),
        ('{"a":' * 100_000, "JSON"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(line, says):
    (problem,) = refusals("http://a.test/1", "# comment", line, "http://a.test/2")
    assert problem.startswith("urls.txt:3: ")
    assert says in problem
    assert len(problem) < 300


def test_a_password_in_a_malformed_line_is_not_told(tmp_path):
    long = "http://user:" + "secret" * 20 + "@a.test/ x"
    for line in (long, "ftp://user:secret@a.test/"):
        with pytest.raises(InputError) as refused:
            read_items([line.encode()], "list")
        assert "secret" not in str(refused.value)


def test_every_malformed_line_is_named_up_to_a_limit():
    problems = refusals(*(["nonsense", "http://a.test/"] * 30))
    assert problems[0].startswith("urls.txt:1: ")
    assert problems[1].startswith("urls.txt:3: ")
    assert problems[-1] == "urls.txt: and 10 more malformed lines"


def test_bytes_that_are_no_text_are_refused_by_their_number():
    with pytest.raises(InputError, match=r"urls.txt:2: not UTF-8"):
        read_items([b"http://a.test/\n", b"\xff\xfe\n"], "urls.txt")


def test_the_digest_depends_on_the_items_and_not_on_how_they_are_written():
    assert read("http://a.test/1", "# x").digest() == read('{"url": "http://a.test/1"}').digest()
    assert read("http://a.test/1").digest() != read("http://a.test/2").digest()


def test_an_ipv6_host_keeps_its_brackets():
    assert host_of("http://[::1]:8080/") == "[::1]:8080"


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_no_list_makes_it_fail_otherwise(lines):
    try:
        read_items(lines, "x")
    except InputError as error:
        assert error.problems


@given(st.text(max_size=60))
def test_no_url_makes_it_fail_otherwise(text):
    try:
        assert host_of("http://" + text)
    except ValueError:
        pass
