"""Where a restored picture comes from, written into its XMP beside all that stands there already.

No time is written: the same input must give the same file, bit for bit. When it was done stands in the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
MEDIA = "http://ns.adobe.com/xap/1.0/mm/"
REFERENCE = "http://ns.adobe.com/xap/1.0/sType/ResourceRef#"
EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""IPTC's vocabulary of digital sources."""
ENHANCED, COMPOSITE, GENERATED = (
    "algorithmicallyEnhanced",
    "compositeWithTrainedAlgorithmicMedia",
    "trainedAlgorithmicMedia",
)
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What is to be said of a result."""

    source_sha256: str
    """Of the original file."""
    source_uri: str | None
    """Where it was, if it has a name."""
    digital_source: str
    """ENHANCED, COMPOSITE or GENERATED."""
    software: str
    """What made the result, with versions."""
    actions: Sequence[str]
    """What was done, in words."""


def with_provenance(xmp: bytes | None, provenance: Provenance, notes: list[str]) -> bytes:
    """A packet that says all that `xmp` says, and this.

    What cannot be read of `xmp` is left out, and `notes` say so.
    """
    document = _parsed(xmp, notes)
    rdf = document.getElementsByTagNameNS(RDF, "RDF")[0]
    for name in ("DerivedFrom", "DigitalSourceType"):
        _remove(rdf, MEDIA if name == "DerivedFrom" else IPTC, name)
    earlier = _take_history(rdf)
    about = next((node.getAttributeNS(RDF, "about") for node in rdf.getElementsByTagNameNS(RDF, "Description")), "")
    description = _child(document, rdf, RDF, "rdf:Description")
    description.setAttributeNS(RDF, "rdf:about", about)
    for prefix, space in (
        ("rdf", RDF),
        ("xmpMM", MEDIA),
        ("stRef", REFERENCE),
        ("stEvt", EVENT),
        ("Iptc4xmpExt", IPTC),
    ):
        description.setAttribute(f"xmlns:{prefix}", space)
    derived = _resource(document, description, MEDIA, "xmpMM:DerivedFrom")
    _text(document, derived, REFERENCE, "stRef:documentID", f"sha256:{provenance.source_sha256}")
    if provenance.source_uri:
        _text(document, derived, REFERENCE, "stRef:filePath", provenance.source_uri)
    history = _child(document, description, MEDIA, "xmpMM:History")
    sequence = _child(document, history, RDF, "rdf:Seq")
    for node in earlier:
        sequence.appendChild(node)
    event = _resource(document, sequence, RDF, "rdf:li")
    _text(document, event, EVENT, "stEvt:action", "edited")
    _text(document, event, EVENT, "stEvt:softwareAgent", provenance.software)
    _text(document, event, EVENT, "stEvt:parameters", "; ".join(provenance.actions) or "nothing")
    _text(document, description, IPTC, "Iptc4xmpExt:DigitalSourceType", SOURCES + provenance.digital_source)
    body: str = document.documentElement.toxml()
    head = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{head}\n{body}\n<?xpacket end="w"?>'.encode()


def _parsed(xmp: bytes | None, notes: list[str]) -> Any:
    if xmp is not None:
        try:
            if b"<!DOCTYPE" in xmp or b"<!ENTITY" in xmp:
                raise ValueError("it declares entities")
            document = minidom.parseString(xmp.strip(b"\0 \r\n\t"))
            if document.getElementsByTagNameNS(RDF, "RDF"):
                return document
            raise ValueError("there is no RDF in it")
        except (ExpatError, ValueError, LookupError) as error:
            notes.append(f"its XMP cannot be read and is left out ({error})")
    return minidom.parseString(_EMPTY)


def _remove(rdf: Any, space: str, name: str) -> None:
    """A property, as an element or an attribute."""
    for node in rdf.getElementsByTagNameNS(space, name):
        node.parentNode.removeChild(node)
    for node in rdf.getElementsByTagNameNS(RDF, "Description"):
        if node.hasAttributeNS(space, name):
            node.removeAttributeNS(space, name)


def _take_history(rdf: Any) -> list[Any]:
    """The events of a history, which is taken out."""
    events = []
    for history in rdf.getElementsByTagNameNS(MEDIA, "History"):
        for sequence in (node for node in history.childNodes if node.nodeType == node.ELEMENT_NODE):
            events += [node for node in sequence.childNodes if node.nodeType == node.ELEMENT_NODE]
        history.parentNode.removeChild(history)
    return events


def _child(document: Any, parent: Any, space: str, name: str) -> Any:
    node = document.createElementNS(space, name)
    parent.appendChild(node)
    return node


def _resource(document: Any, parent: Any, space: str, name: str) -> Any:
    node = _child(document, parent, space, name)
    node.setAttributeNS(RDF, "rdf:parseType", "Resource")
    return node


def _text(document: Any, parent: Any, space: str, name: str, text: str) -> None:
    clean = "".join(sign for sign in text if sign in "\t\n" or sign >= " ")  # XML has no others
    _child(document, parent, space, name).appendChild(document.createTextNode(clean))
