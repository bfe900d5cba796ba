"""Which files of a repository make a model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.ops.hub_listing import HubFile, HubTrouble, NoSuchModel, choose, parse_tree


def listing(*paths: str) -> list[HubFile]:
    return [HubFile(path, 10, "0" * 64) for path in paths]


def chosen(files: list[HubFile], wanted: str | None = None) -> list[str]:
    return [file.path for file in choose(files, wanted)]


def test_tree_reads_size_and_checksum_from_lfs() -> None:
    """The checksum is the LFS object's, the size too; folders are left out; a plain file has no checksum."""
    body = (
        b'[{"type":"directory","oid":"a","size":0,"path":"sub"},'
        b'{"type":"file","oid":"b","size":133,"lfs":{"oid":"%s","size":5000,"pointerSize":133},"path":"sub/m.gguf"},'
        b'{"type":"file","oid":"c","size":7,"path":"README.md"}]' % (b"f" * 64)
    )
    assert parse_tree(body) == [HubFile("sub/m.gguf", 5000, "f" * 64), HubFile("README.md", 7, None)]


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_unreadable_tree_is_operational_trouble(body: bytes) -> None:
    """Whatever a broken hub answers is a HubTrouble or a list, never another exception."""
    try:
        assert isinstance(parse_tree(body), list)
    except HubTrouble:
        pass


def test_default_is_the_usual_quantisation() -> None:
    """Without a wish, Q4_K_M is taken where there is one, and never the image projector."""
    files = listing("m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-Q4_K_M.gguf", "README.md")
    assert chosen(files) == ["m-Q4_K_M.gguf"]


def test_wish_by_quantisation_pattern_or_path() -> None:
    """A quantisation in any case, a glob and an exact path all find the file."""
    files = listing("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-IQ4_K_M.gguf")
    for wish in ("q8_0", "*Q8*", "m-Q8_0.gguf"):
        assert chosen(files, wish) == ["m-Q8_0.gguf"]
    assert chosen(files, "Q4_K_M") == ["m-Q4_K_M.gguf"]


def test_split_model_is_taken_whole_and_in_order() -> None:
    """All parts of a split model come, the first one first; a model with a part missing is no choice at all."""
    parts = [f"big-Q4_K_M-{n:05d}-of-00003.gguf" for n in (3, 1, 2)]
    assert chosen(listing(*parts)) == sorted(parts)
    with pytest.raises(NoSuchModel):
        choose(listing(*parts[:2]))


@pytest.mark.parametrize("wish", ["Q2_K", "*Q*", "nothing.gguf"])
def test_no_or_no_single_fit_names_the_choices(wish: str) -> None:
    """What does not lead to one model is answered with the list of those there are."""
    with pytest.raises(NoSuchModel, match=r"m-Q8_0\.gguf"):
        choose(listing("m-Q8_0.gguf", "m-Q4_K_M.gguf"), wish)
