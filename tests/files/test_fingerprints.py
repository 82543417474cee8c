"""Fingerprints of files are the known sha256 of their bytes."""

from modeling_treediff.files.fingerprints import file_sha256


def test_the_fingerprint_is_that_of_the_standard(tmp_path):
    """The examples of FIPS 180-4."""
    (tmp_path / "empty").touch()
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
