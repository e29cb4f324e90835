"""Where a restored picture comes from, written into its XMP beside all that stands there already.

No time is written: the same input must give the same file, bit for bit. When it was done stands in the table.
"""

from __future__ import annotations

import dataclasses
import re
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
ENHANCED, COMPOSITE = "algorithmicallyEnhanced", "compositeWithTrainedAlgorithmicMedia"
GENERATED = "trainedAlgorithmicMedia"
_XML_HEAD = re.compile(r"<\?xml[^>]*\?>")
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What is to be said of a result."""

    source_sha256: str | None
    """Of the original file, if there is one."""
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
    about = next((node.getAttributeNS(RDF, "about") for node in _descriptions(rdf)), "")
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
    if provenance.source_sha256 is not None:
        derived = _resource(document, description, MEDIA, "xmpMM:DerivedFrom")
        _text(document, derived, REFERENCE, "stRef:documentID", f"sha256:{provenance.source_sha256}")
        if provenance.source_uri:
            _text(document, derived, REFERENCE, "stRef:filePath", provenance.source_uri)
    history = _child(document, description, MEDIA, "xmpMM:History")
    sequence = _child(document, history, RDF, "rdf:Seq")
    for node in earlier:
        sequence.appendChild(node)
    event = _resource(document, sequence, RDF, "rdf:li")
    _text(document, event, EVENT, "stEvt:action", "created" if provenance.digital_source == GENERATED else "edited")
    _text(document, event, EVENT, "stEvt:softwareAgent", provenance.software)
    _text(document, event, EVENT, "stEvt:parameters", "; ".join(provenance.actions) or "nothing")
    _text(document, description, IPTC, "Iptc4xmpExt:DigitalSourceType", SOURCES + provenance.digital_source)
    body: str = document.documentElement.toxml()
    head = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{head}\n{body}\n<?xpacket end="w"?>'.encode()


def _parsed(xmp: bytes | None, notes: list[str]) -> Any:
    if xmp is not None:
        try:
            text = _XML_HEAD.sub("", _text_of(xmp).strip("\0 \r\n\t\ufeff"))
            if "<!DOCTYPE" in text or "<!ENTITY" in text:
                raise ValueError("it declares entities")
            document = minidom.parseString(text.encode())  # nosec B318: no entities, see above
            if document.getElementsByTagNameNS(RDF, "RDF"):
                return document
            raise ValueError("there is no RDF in it")
        except (ExpatError, ValueError, LookupError) as error:
            notes.append(f"its XMP cannot be read and is left out ({error})")
    return minidom.parseString(_EMPTY)  # nosec B318: ours


def _text_of(xmp: bytes) -> str:
    """XMP may be in UTF-8, 16 or 32, with or without a mark of its order."""
    for mark, encoding in (
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if xmp.startswith(mark):
            return xmp.decode(encoding)
    for start, encoding in (
        (b"<\0\0\0", "utf-32-le"),
        (b"\0\0\0<", "utf-32-be"),
        (b"<\0", "utf-16-le"),
        (b"\0<", "utf-16-be"),
    ):
        if xmp.startswith(start):
            return xmp[: len(xmp) - len(xmp) % 2].decode(encoding)
    return xmp.decode("utf-8-sig")


def _descriptions(rdf: Any) -> list[Any]:
    """Those that say something of the picture itself."""
    found = (node for node in rdf.childNodes if node.nodeType == node.ELEMENT_NODE)
    return [node for node in found if node.namespaceURI == RDF and node.localName == "Description"]


def _properties(rdf: Any, space: str, name: str) -> list[Any]:
    """Elements that hold a property of the picture itself."""
    inner = (node for description in _descriptions(rdf) for node in description.childNodes)
    elements = (node for node in inner if node.nodeType == node.ELEMENT_NODE)
    return [node for node in elements if node.namespaceURI == space and node.localName == name]


def _remove(rdf: Any, space: str, name: str) -> None:
    """A property of the picture, as an element or an attribute."""
    for node in _properties(rdf, space, name):
        node.parentNode.removeChild(node)
    for node in _descriptions(rdf):
        if node.hasAttributeNS(space, name):
            node.removeAttributeNS(space, name)


def _take_history(rdf: Any) -> list[Any]:
    """The events of the picture's history, which is taken out."""
    events = []
    for history in _properties(rdf, MEDIA, "History"):
        for sequence in (node for node in history.childNodes if node.nodeType == node.ELEMENT_NODE):
            events += [node for node in sequence.childNodes if node.nodeType == node.ELEMENT_NODE]
        history.parentNode.removeChild(history)
    for event in events:
        _declare(event, event)
    return events


def _declare(node: Any, top: Any) -> None:
    """Let a node that is moved say what its prefixes mean."""
    attributes = [node.attributes.item(place) for place in range(node.attributes.length)]
    for named in (node, *attributes):
        if named.prefix and named.prefix not in ("xml", "xmlns") and named.namespaceURI:
            top.setAttribute(f"xmlns:{named.prefix}", named.namespaceURI)
    for child in node.childNodes:
        if child.nodeType == child.ELEMENT_NODE:
            _declare(child, top)


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
