from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pipeline.imaging.xmp import COMPOSITE, ENHANCED, IPTC, MEDIA, RDF, REFERENCE, SOURCES, Provenance, with_provenance

TOLD = Provenance("ab" * 32, "s3://archive/1.tif", ENHANCED, "conservator 1", ["denoise (12)", "fill (0.1)"])
EARLIER = b"""<?xpacket begin='\xef\xbb\xbf' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>
<rdf:Description rdf:about='uuid:1' xmlns:dc='http://purl.org/dc/elements/1.1/'
 xmlns:xmpMM='http://ns.adobe.com/xap/1.0/mm/' xmlns:e='http://iptc.org/std/Iptc4xmpExt/2008-02-29/'
 e:DigitalSourceType='http://cv.iptc.org/newscodes/digitalsourcetype/print'>
<dc:title><rdf:Alt><rdf:li xml:lang='x-default'>H\xc3\xa4fen &amp; &lt;Meer&gt;</rdf:li></rdf:Alt></dc:title>
<xmpMM:History><rdf:Seq><rdf:li>scanned</rdf:li></rdf:Seq></xmpMM:History>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end='w'?>"""


def parsed(packet: bytes) -> ElementTree.Element:
    """The RDF of a packet."""
    rdf = ElementTree.fromstring(packet.decode()).find(f"{{{RDF}}}RDF")
    assert rdf is not None
    return rdf


def values(rdf: ElementTree.Element, space: str, name: str) -> list[str]:
    """Of a property, wherever it stands."""
    inside = [node.text or "" for node in rdf.iter(f"{{{space}}}{name}")]
    return inside + [node.attrib[f"{{{space}}}{name}"] for node in rdf.iter() if f"{{{space}}}{name}" in node.attrib]


@pytest.mark.parametrize("earlier", [None, EARLIER])
def test_the_packet_says_from_what_it_derives_and_what_it_is(earlier: bytes | None) -> None:
    notes: list[str] = []
    rdf = parsed(with_provenance(earlier, TOLD, notes))
    assert not notes
    assert values(rdf, IPTC, "DigitalSourceType") == [SOURCES + ENHANCED]
    assert values(rdf, REFERENCE, "documentID") == ["sha256:" + "ab" * 32]
    assert values(rdf, REFERENCE, "filePath") == ["s3://archive/1.tif"]
    assert any("denoise (12); fill (0.1)" in (node.text or "") for node in rdf.iter())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_packets_in_other_encodings_are_read(encoding: str) -> None:
    notes: list[str] = []
    rdf = parsed(with_provenance(EARLIER.decode().lstrip("\ufeff").encode(encoding), TOLD, notes))
    assert not notes and any("Häfen" in (node.text or "") for node in rdf.iter())


def test_moved_events_keep_their_prefixes_and_nested_ones_stay() -> None:
    earlier = EARLIER.replace(b"<rdf:li>scanned</rdf:li>", b"<rdf:li dc:x='1'><dc:y>scanned</dc:y></rdf:li>").replace(
        b"<xmpMM:History>",
        b"<xmpMM:Pantry><rdf:Bag><rdf:li><xmpMM:DerivedFrom>other</xmpMM:DerivedFrom></rdf:li></rdf:Bag></xmpMM:Pantry>"
        b"<xmpMM:History>",
    )
    rdf = parsed(with_provenance(earlier, TOLD, []))
    assert "scanned" in {node.text for node in rdf.iter("{http://purl.org/dc/elements/1.1/}y")}
    assert len(list(rdf.iter(f"{{{MEDIA}}}DerivedFrom"))) == 2


def test_what_stood_there_stays() -> None:
    rdf = parsed(with_provenance(EARLIER, TOLD, []))
    texts = [node.text for node in rdf.iter(f"{{{RDF}}}li")]
    assert texts[:2] == ["Häfen & <Meer>", "scanned"]
    assert len(list(rdf.iter(f"{{{MEDIA}}}History"))) == 1


def test_a_second_restoration_takes_the_place_of_the_first_but_for_the_history() -> None:
    once = with_provenance(EARLIER, TOLD, [])
    again = Provenance("cd" * 32, None, COMPOSITE, "conservator 2", [])
    rdf = parsed(with_provenance(once, again, []))
    assert values(rdf, IPTC, "DigitalSourceType") == [SOURCES + COMPOSITE]
    assert values(rdf, REFERENCE, "documentID") == ["sha256:" + "cd" * 32]
    (history,) = rdf.iter(f"{{{MEDIA}}}History")
    assert len(list(history.iter(f"{{{RDF}}}li"))) == 3


@pytest.mark.parametrize(
    "broken", [b"no xml", b"<a><b></a>", b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><x>&a;</x>", b"<a/>", b"\xff\xfe\x00"]
)
def test_what_cannot_be_read_is_left_out_and_said_so(broken: bytes) -> None:
    notes: list[str] = []
    rdf = parsed(with_provenance(broken, TOLD, notes))
    assert values(rdf, IPTC, "DigitalSourceType") == [SOURCES + ENHANCED]
    assert len(notes) == 1 and "XMP" in notes[0]


def test_the_same_is_the_same() -> None:
    assert with_provenance(EARLIER, TOLD, []) == with_provenance(EARLIER, TOLD, [])


def test_signs_that_xml_has_not_do_no_harm() -> None:
    told = Provenance("ab" * 32, "a\x00b\x1f<&>\"'", ENHANCED, "c", [])
    assert values(parsed(with_provenance(None, told, [])), REFERENCE, "filePath") == ["ab<&>\"'"]
