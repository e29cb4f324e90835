"""The recipe: the whole configuration of a run as one typed tree.

A recipe comes from a YAML file, from overrides such as `restoration.tile=256`, or both; every field has a
default except where the data lies. Its digest travels with every row.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import RecipeError
from pipeline.redaction import sounds_secret, without_secrets
from pipeline.schema import EVIDENCE


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


CODE_KEYS = ("py-catalog-impl", "py-io-impl")
"""Properties by which pyiceberg would import a class of any name."""


def _only_data(catalog: dict[str, str]) -> dict[str, str]:
    forbidden = [key for key in CODE_KEYS if key in catalog]
    if forbidden:
        raise ValueError(f"{forbidden[0]!r} would run code that the recipe names, which none may; use another `type`")
    return catalog


Catalog = Annotated[dict[str, str], AfterValidator(_only_data)]


class Source(_Section):
    """What is read."""

    uri: tuple[str, ...] = ()
    """Parquet files, folders or globs; the folder of a Delta or Iceberg table; a folder of image files. Local paths,
    `s3://…` or any fsspec URL; with `catalog`, names of Iceberg tables."""
    format: Literal["auto", "parquet", "delta", "iceberg", "images"] = "auto"
    """What lies there; `auto` looks."""
    version: int | str | None = None
    """The version of a Delta table, or the snapshot id or tag of an Iceberg table; null: the newest."""
    catalog: Catalog = Field(default_factory=dict)
    """pyiceberg's properties of the catalog (`type`, `uri`, …) in which `uri` is a table's name."""
    captions: str | None = None
    """A CSV or JSON-lines file that tells more of a folder's image files, named in its column `file_name`; null:
    `metadata` or `captions` with the ending .csv, .jsonl or .ndjson in the folder, if it is there."""
    filters: tuple[tuple[str, Literal["=", "==", "!=", "<", "<=", ">", ">=", "in", "not in"], Any], ...] = ()
    """Only rows for which all of these hold, such as `[[year, ">=", 1900], [shelf, in, [A, B]]]`."""
    storage: dict[str, str | int | bool] = Field(default_factory=dict)
    """Options of the store, as its fsspec driver knows them, such as `endpoint_url` and `profile` of s3. Secrets are
    named, not written: `${NAME}` stands for an environment variable."""
    early: bool = True
    """Whether work begins, where it takes long to look through all files, with those that are known after 20 s. Their
    columns' types are then the table's, and what later files hold must go into these."""
    allowed_uris: tuple[str, ...] = ()
    """Prefixes under which images named by URI may be fetched; empty: only the source's own folder."""

    @field_validator("filters")
    @classmethod
    def _values_fit(cls, filters: tuple[tuple[str, str, Any], ...]) -> tuple[tuple[str, str, Any], ...]:
        for name, comparison, value in filters:
            wants_list = comparison in ("in", "not in")
            if wants_list != isinstance(value, list | tuple):
                raise ValueError(
                    f"{name!r} {comparison} wants {'a list' if wants_list else 'one value'}, not {value!r}"
                )
            if value is None or (wants_list and None in value):
                raise ValueError(f"{name!r} is compared with null, which holds for no row")
        return filters

    @field_validator("uri", "allowed_uris", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Columns(_Section):
    """Which column of the source holds what. All other columns pass through untouched."""

    id: str = "id"
    """A key of the row; kept in the output."""
    image: str = "image"
    """The damaged image: bytes, a struct with `bytes` and `path` (Hugging Face), or a URI."""
    caption: str | None = "caption"
    """A string or a list of them; may be null; kept in the output. Of a list the first that is not blank counts, and
    for the colours of greys the four next to it."""
    mask: str | None = "mask"
    """An image, nonzero (white) where the picture is lost; may be null."""
    references: str | None = "references"
    """A list of other images of the same subject; may be null."""
    truth: str | None = "truth"
    """The undamaged image, if known: it is only compared with, never shown to the model."""
    keep: tuple[str, ...] | None = None
    """The other columns that pass through, beside id and caption; null: all."""


class Restoration(_Section):
    """What is done to an image."""

    model: Annotated[str, Field(min_length=1)] | tuple[Annotated[str, Field(min_length=1)], ...] = "compact"
    """A shipped model's name, or a folder or URI with `config.json` and `model.safetensors`. Or a model of others:
    `spandrel:FILE`, `swin2sr:FOLDER`, `diffusers-inpaint:FOLDER`, `diffusers-redraw:FOLDER` or
    `diffusers-enlarge:FOLDER`, paths or URIs (docs/models.md). Or several, of which one takes what the other gives:
    `[compact, "spandrel:models/4x.safetensors"]`; only the first may be one of ours."""
    text_encoder: str | None = None
    """Where the text encoder lies that the model was trained with, if not where it lay then: a folder or URI with a
    model of transformers, or a file of word vectors."""
    storage: dict[str, str | int | bool] = Field(default_factory=dict)
    """Options of the store that models lie in, as for the source."""
    downloads: bool = False
    """A text encoder that has a name on the Hugging Face hub may be fetched from there; else nothing is."""
    tile: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] | Literal["auto"] = 560
    """Side of the decoder's largest tiles in pixels, margins included; an image has smaller ones where these cover it
    with less. `auto` takes the fastest that a search at the start finds, the same again on the same kind of machine:
    on another one, results may differ in their last digit."""
    margin: int = Field(default=48, ge=0, le=512)
    """Pixels cut off each inner edge of a tile. As far as 48 pixels what is seen beyond matters to a result."""
    colourise: bool = False
    """Give grey images colours (guided by the caption and references)."""
    strength: float = Field(default=1.0, ge=0, le=1)
    """How much of the change is made: less keeps grain and the look of the original. What is lost is always filled."""
    strengths: dict[Literal["noise", "jpeg", "blur", "downscale", "fading"], Annotated[float, Field(ge=0, le=1)]] = (
        Field(default_factory=dict)
    )
    """The same for kinds of damage, where it differs: `{noise: 0.5}`. An image with several is treated between them, as
    much of each was found."""
    lost: Literal["fail", "generate"] = "fail"
    """What becomes of a row whose image is null or cannot be read at all, if it has a caption: `generate` makes a small
    picture of that, with the status `generated`."""
    generator: str = "generator"
    """What makes it: the shipped one; a model by `conservator train --task generate`, a folder or URI; or
    `diffusers:FOLDER` with any text-to-image pipeline of diffusers."""
    mark_generated: bool = True
    """Write into such pictures, visibly, that they are generated; their metadata say so in any case."""
    skip_undamaged: float | None = Field(default=None, gt=0, le=1)
    """Images judged undamaged with at least this probability are not decoded at all: the original is their result. That
    saves nearly all of their time; 0.5 is a good value (docs/performance.md). None: all are."""
    half: bool = False
    """Let models of spandrel and Swin2SR run in bfloat16 where the hardware is fast at it and the model allows it; else
    their results are those of plain PyTorch in single precision. Ours always do, and diffusers' on GPUs."""
    compile: bool = False
    """Run the decoder through torch.compile: a minute or more at the start of every actor, and a C++ compiler is needed
    (docs/performance.md)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes a GPU if the cluster has one at the start. Name `cuda` where GPU machines
    are only started when they are asked for."""

    @field_validator("generator", mode="before")
    @classmethod
    def _shipped(cls, value: object) -> object:
        """Recipes of earlier versions name none."""
        return "generator" if value is None else value

    @property
    def models(self) -> tuple[str, ...]:
        """What `model` names, one or several."""
        return (self.model,) if isinstance(self.model, str) else self.model

    @model_validator(mode="after")
    def _margin_fits(self) -> Restoration:
        if not self.models:
            raise ValueError("model is an empty list")
        if self.tile != "auto" and self.tile <= 2 * self.margin:
            raise ValueError(f"tile ({self.tile}) must be larger than twice the margin ({self.margin})")
        return self


class Scoring(_Section):
    """What is measured of input and output, beside what costs nothing to know (docs/scores.md)."""

    truth: bool = True
    """Compare with the truth, where one is given."""
    brisque: bool = False
    """Tell BRISQUE too (needs `conservator[brisque]`; half a second a megapixel on one core)."""
    clip: str | None = None
    """A folder with a CLIP model of transformers: CLIPScore of captioned images is told too."""
    lpips: str | None = None
    """Path or URI of weights: LPIPS is told too where there is a truth."""
    dists: str | None = None
    """Path or URI of weights: DISTS is told too where there is a truth."""


class Rule(_Section):
    """One more rule of the gate, by a score."""

    score: str
    """Its column, without prefix: `colour_shift`, `sharpness_after`, …; what is told after is that of the result that
    was proposed."""
    above: float | None = None
    """The rule holds for higher values,"""
    below: float | None = None
    """or for lower ones."""
    then: Literal["kept", "review"] = "review"
    """What becomes of the row."""
    reason: str = ""
    """What the row says; empty: the score and its bound."""

    @model_validator(mode="after")
    def _fits(self) -> Rule:
        if self.score not in EVIDENCE:
            near = difflib.get_close_matches(self.score, EVIDENCE, n=1)
            raise ValueError(
                f"no score {self.score!r} that the gate can go by"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(EVIDENCE)}")
            )
        if (self.above is None) == (self.below is None):
            raise ValueError(f"the rule on {self.score!r} wants either above or below")
        return self


class Gate(_Section):
    """When a restored image is taken, when the original is kept, and when a person should look."""

    worse_above: float = Field(default=0.01, ge=0, le=1)
    """An image whose result is farther from the truth than it is, with a greater probability than this, is kept. Models
    with a critic tell it, `compact` among them; for results of others the next two rules stand in."""
    clean_above: float = Field(default=0.002, ge=0, le=1)
    """Without a critic: an image judged undamaged with at least this probability is kept as it is. So small since the
    model is too sure of damage where there is none (docs/evaluation.md)."""
    sure_gain: float = Field(default=4.5, ge=0)
    """Unless its result is expected to be better by at least so many dB: what judges the whole image overlooks folds,
    tears and hairs, which the decoder finds."""
    least_change: float = Field(default=45.0, ge=0)
    """A result closer to its original than this PSNR (dB) is not worth a new file: the original is kept."""
    least_gain: float = Field(default=0.5, ge=0)
    """A result expected to be better by fewer dB than this is not worth a new file: the original is kept."""
    review_below: float = Field(default=20.0, ge=0)
    """Results whose expected PSNR (dB) is lower are marked `review`."""
    review_subjects_below: float = Field(default=23.0, ge=0)
    """So are those that show a face or text, likely, whose expected PSNR (dB) is lower there."""
    review_fill: float = Field(default=0.05, ge=0, le=1)
    """So are those of which a larger share looked missing, in places wider than about a thirtieth of the shorter side,
    and was filled without being asked for: what looks like a hole may be a silhouette, or the frame of the scan.
    Thinner ones (scratches, cracks, dust) do not count."""
    review_mask: float = Field(default=0.3, ge=0, le=1)
    """So are those of which a larger share was filled because a mask asked for it."""
    find_text: bool = False
    """Look for text in the picture, not in its caption alone (needs `conservator[text]`; half a second an image on one
    core, where the result is uncertain)."""
    rules: tuple[Rule, ...] = ()
    """More rules, such as `[{score: colour_shift, above: 10}, {score: noise_before, below: 2, then: kept}]`."""


class Signing(_Section):
    """Content credentials: with whose key restored files are signed (needs `conservator[c2pa]`)."""

    certificates: str
    """A file with the signer's certificate and those above it, PEM."""
    key: str
    """A file with the private key, PEM."""
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    """What kind of key it is."""


class Output(_Section):
    """What is written."""

    uri: str = ""
    """Where `data/`, `summary.json`, `report.html` and `state/` go; a folder or an fsspec URL."""
    format: Literal["auto", "png", "tiff", "webp", "jpeg", "avif", "jpeg2000"] = "auto"
    """File format of restored images. `auto`: the original's, where that can be lossless (PNG, TIFF, WebP, JPEG 2000),
    else PNG. What a format cannot hold of an image goes into PNG, and what PNG cannot hold into TIFF."""
    quality: int | None = Field(default=None, ge=1, le=100)
    """Of JPEG, AVIF and WebP, 1 to 100; of JPEG 2000 a PSNR in dB. Null: lossless where the format can be, else 95 for
    JPEG and 90 for AVIF."""
    least_psnr: float = Field(default=42.0, ge=0, le=60)
    """No file is further from what it was to hold (dB) because of a lossy format: its quality is raised, and if that
    does not help it is written lossless."""
    provenance: bool = True
    """Write into each restored file, as XMP, from which original it derives, and what kind of digital source it is."""
    signing: Signing | None = None
    """Sign restored files as C2PA has it: a manifest in each names its original and what was done. JPEG 2000 and images
    restored band by band have none. Null: nothing is signed."""
    prefix: str = ""
    """Put before the names of the columns that are added, where they would collide with the source's own."""
    previews: int = Field(default=320, ge=0, le=2048)
    """Longest side in pixels of the small before and after pictures in the table; 0: none."""
    file_mb: int = Field(default=256, ge=1, le=4096)
    """Data files hold at least so many MB, but for the last ones."""
    row_group: int | None = Field(default=None, ge=1)
    """Rows of a data file that readers fetch together. Null: 64, and of small images in the table up to 1,024."""
    table: Literal["parquet", "iceberg", "delta"] = "parquet"
    """The kind of table: Parquet files with a manifest, Apache Iceberg, or Delta Lake."""
    table_name: str = Field(default="conservator.restored", pattern=r"^[^.]+(\.[^.]+)+$")
    """Namespace and name of an Iceberg table in its catalog."""
    catalog: Catalog = Field(default_factory=dict)
    """pyiceberg's properties of the catalog (`type`, `uri`, …); empty: one in memory, made from the table's folder."""
    storage: dict[str, str | int | bool] = Field(default_factory=dict)
    """Options of the store, as for the source."""
    images: Literal["inline", "files"] = "inline"
    """Where restored images go: into the table, or into files of their own below `images/`, with their URI in the
    table."""
    partition_by: tuple[str, ...] = ()
    """Pass-through columns by whose values the table is divided."""
    mixed: bool = False
    """Let new files of a table be restored with another recipe than the old ones."""
    commit_minutes: float = Field(default=5, gt=0)
    """Rows that are done come into the table so often, and at the end."""
    grace_seconds: float = Field(default=120, ge=0)
    """So long a run that is told to end (SIGTERM, Ctrl-C) works on what is in flight."""
    lease_seconds: float = Field(default=120, ge=5)
    """So long after a run has died without a word, another may write."""


DEFAULTS = 2
"""To be raised when a default that decides what rows hold becomes another one: then recipes are no longer what they
were, and their digests must not be."""
_PLACES = (
    *("uri", "storage", "table", "table_name", "catalog", "file_mb", "row_group", "partition_by"),
    *("mixed", "commit_minutes", "grace_seconds", "lease_seconds"),
)
"""Settings of the output that do not change a row."""


class Prices(_Section):
    """What machines cost, for estimates and reports."""

    actor_hour: float = Field(default=0.0, ge=0)
    """Of a restoring actor: of a GPU, or of what a machine without one costs beyond its cores."""
    core_hour: float = Field(default=0.0, ge=0)
    """Of a CPU core."""
    currency: str = "EUR"
    """As it is shown."""

    def cost(self, actor_hours: float, core_hours: float) -> float | None:
        """Of so many hours; None where nothing has a price."""
        if not self.actor_hour and not self.core_hour:
            return None
        return actor_hours * self.actor_hour + core_hours * self.core_hour


class Resources(_Section):
    """What a run may take of the cluster."""

    actors: int = Field(default=0, ge=0)
    """Restoring actors; 0: one a GPU of those that are there at the start, or without GPUs one a core, if the machine
    has 4 GB of memory for each; with models of others one a machine."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of a restoring actor without a GPU; 0: as many as there are cores for each."""
    decoder_mb: int | None = Field(default=None, ge=64)
    """Memory that a run of the decoder may take, in MB, about: how many tiles run together is measured within it. None:
    half of a GPU's free memory; on a CPU, which is as fast with few, as little as it takes. Where it proves too much,
    batches are halved."""
    task_cpus: float = Field(default=0.5, gt=0)
    """Share of a core that Ray reserves for a decoding or encoding task."""
    block_mb: int | None = Field(default=None, ge=1, le=1024)
    """Pixels handed to the restoring actor at a time, in MB. None: 48 for a GPU, 12 for a CPU, which is at that about
    as long as one likes to wait for it."""
    prices: Prices = Prices()
    object_store_mb: int = Field(default=1500, ge=100)
    """Shared memory of a Ray that the job starts by itself; a cluster keeps its own."""

    def block_bytes(self, device: str) -> int:
        """`block_mb`, in bytes."""
        return 1_000_000 * (self.block_mb or (48 if device == "cuda" else 12))


class Limits(_Section):
    """What is refused, so that one bad row cannot stop the others."""

    max_megapixels: float = Field(default=100, gt=0)
    """Larger images become `failed` rows. A restoring actor takes about 30 MB a megapixel of its largest image."""
    max_streamed_megapixels: float = Field(default=2000, gt=0)
    """But TIFF files up to this size are restored band by band, without being in memory, if rows name them by URI; so
    are those that lie in a folder of image files. The result goes into `images/`."""
    max_result_megapixels: float = Field(default=400, gt=0)
    """Images that a model would make larger than this become `failed` rows: a result takes about 40 MB a megapixel."""
    max_image_mb: float = Field(default=500, gt=0)
    """Larger image files become `failed` rows."""
    row_seconds: float = Field(default=600, gt=0)
    """A worker that takes longer with a row (30 s more for each megapixel, once it is decoded; rows that are tried
    together have 10 s more each) ends itself. A row on which workers die, by this or a crash, becomes `failed`."""
    max_references: int = Field(default=4, ge=0)
    """References used of a row; further ones are ignored."""
    attempts: int = Field(default=4, ge=1)
    """Tries to fetch an image from a store that answers with passing errors."""
    rows: int | None = Field(default=None, ge=1)
    """Only the first so many rows (`--limit`)."""


class Recipe(_Section):
    """The whole configuration of one run."""

    source: Source = Source()
    columns: Columns = Columns()
    restoration: Restoration = Restoration()
    scoring: Scoring = Scoring()
    gate: Gate = Gate()
    output: Output = Output()
    resources: Resources = Resources()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _rules_can_hold(self) -> Recipe:
        asked = {"clip_score": self.scoring.clip is not None, "brisque": self.scoring.brisque}
        for rule in self.gate.rules:
            name = rule.score.rsplit("_", 1)[0]
            if not asked.get(name, True):
                wanted = "scoring.clip=FOLDER" if name == "clip_score" else "scoring.brisque=true"
                raise ValueError(f"a rule of the gate goes by {rule.score!r}, which is not told without {wanted}")
        return self

    def digest(self) -> str:
        """SHA-256 over what decides a row's content: not over places, resources or how many rows.

        Only what differs from the defaults counts, so that a version with more keys goes on where another has begun.
        """
        places = {
            "source": {*Source.model_fields} - {"filters"},
            "output": {*_PLACES},
            "limits": {"rows", "row_seconds"},
            "restoration": {"storage"},
        }
        left_out: dict[str, Any] = {"resources": True, **places}
        content = self.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
        if self.output.signing is not None:
            content["output"]["signing"] = True
        for name in ("clip", "lpips", "dists"):
            if getattr(self.scoring, name) is not None:
                content["scoring"][name] = True
        content = {name: section for name, section in content.items() if section} | {"defaults": DEFAULTS}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def result_digest(self) -> str:
        """SHA-256 over what decides a result's pixels, beside model and inputs."""
        places = {"device", "model", "text_encoder", "generator", "storage", "downloads"}
        others = {"lost", "mark_generated", "compile"}
        content = self.restoration.model_dump(mode="json", exclude=places | others, exclude_defaults=True)
        if self.restoration.colourise:  # whether colours go onto the repair or the original, the gate decides
            content |= {"gate": self.gate.model_dump(mode="json", exclude_defaults=True), "defaults": DEFAULTS}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_yaml(self, shown: Callable[[str], str] = str) -> str:
        """The recipe as a file that `load_recipe` reads; `shown` may take secrets out of its URIs."""
        tree = self.model_dump(mode="json")
        for key in ("uri", "allowed_uris"):
            tree["source"][key] = [shown(uri) for uri in tree["source"][key]]
        scores = (("scoring", name) for name in ("clip", "lpips", "dists"))
        parts = (("restoration", name) for name in ("text_encoder", "generator"))
        for section, key in (("source", "captions"), *parts, *scores, ("output", "uri")):
            tree[section][key] = None if tree[section][key] is None else shown(tree[section][key])
        names = [shown_model(name, shown) for name in self.restoration.models]
        tree["restoration"]["model"] = names[0] if isinstance(self.restoration.model, str) else names
        return yaml.safe_dump(tree, sort_keys=False)


def shown_model(name: str, shown: Callable[[str], str]) -> str:
    """A model's name with what `shown` makes of its URI: the kind that may stand before it is none of a URI's."""
    kind, separator, place = name.partition(":")
    return f"{kind}:{shown(place)}" if separator and not place.startswith("//") else shown(name)


def load_recipe(place: str | None = None, overrides: Sequence[str] = (), **given: Any) -> Recipe:
    """Build a recipe.

    Args:
        place: a YAML file, or the name of a ready-made recipe; None: the defaults.
        overrides: `section.key=value`, the value in YAML.
        given: `section__key=value`, as from command-line options; None means not given.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, or a value does not fit; it names them all.
    """
    tree = _read(place) if place else {}
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator:
            raise RecipeError(f"--set {without_secrets(path)}: expected KEY=VALUE, such as restoration.tile=256")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {path}=…: the value is not YAML: {_not_yaml(error)}") from error
        _put(tree, path.strip(), value)
    for name, value in given.items():
        if value is not None:
            _put(tree, name.replace("__", "."), value)
    return _validated(tree)


def parse_recipe(text: str) -> Recipe:
    """A recipe from YAML text, as `Recipe.to_yaml` wrote it.

    Raises:
        RecipeError: it is not one.
    """
    return _validated(_parse(text, "of the run"))


def _validated(tree: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate({name: {} if section is None else section for name, section in tree.items()})
    except ValidationError as error:
        raise RecipeError(_explain(error)) from error


def ready_made() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(place: str) -> dict[str, Any]:
    if place in ready_made():
        text = (resources.files("pipeline") / "recipes" / f"{place}.yaml").read_text()
    else:
        try:
            text = Path(place).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise RecipeError(
                f"cannot read the recipe {place!r}: {reason}; give a YAML file, or one of {', '.join(ready_made())}"
            ) from error
    return _parse(text, place)


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe {place!r} is not YAML: {_not_yaml(error)}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"the recipe {place!r} must hold sections such as 'restoration:', not {type(tree).__name__}")
    return tree


def _not_yaml(error: yaml.YAMLError) -> str:
    """Why, and where; what PyYAML says beside it would show the line, with its secrets."""
    said = getattr(error, "problem", None)
    if not isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError):
        said = "a tag or a name (`!…`, `*…`) that is not known; put the value in quotes"
    mark = getattr(error, "problem_mark", None)
    return f"{said}, in line {mark.line + 1}, column {mark.column + 1}" if mark else str(said)


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        if tree.get(section) is None:  # an empty section of a YAML file is null
            tree[section] = {}
        inner = tree[section]
        if not isinstance(inner, dict):
            raise RecipeError(f"{path}: {section!r} is a value, not a section")
        tree = inner
    tree[key] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = _nearest(path)
            lines.append(f"unknown key {path!r}" + (f"; did you mean {near!r}?" if near else ""))
        else:
            hint = "; put text that YAML takes for something else in quotes" if problem["type"] == "string_type" else ""
            lines.append(f"{path or 'recipe'}: {problem['msg']}{_found(problem['loc'], problem['input'], hint)}")
    return "the recipe is wrong: " + "; ".join(lines)


def _found(place: Sequence[str | int], value: object, hint: str) -> str:
    """What stands at a place of the recipe, unless it may be a secret: sections may hold some."""
    names = [str(part) for part in place]
    is_option = bool({"storage", "catalog"}.intersection(names))
    if is_option or any(map(sounds_secret, names)) or _holds_sections(value):
        return f" ({hint.removeprefix('; ')})" if hint else ""
    return f" (found {without_secrets(repr(value))}{hint})"


def _holds_sections(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_sections, value))
    return isinstance(value, Mapping)


def _nearest(path: str) -> str | None:
    known = list(Recipe.model_fields)
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            known += [f"{name}.{key}" for key in section.model_fields]
    if "." not in path:  # a key that someone wrote without its section
        matches = difflib.get_close_matches(path, [name.split(".")[-1] for name in known], n=1, cutoff=0.6)
        return next((name for name in known if name.split(".")[-1] == matches[0]), None) if matches else None
    matches = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    return matches[0] if matches else None
