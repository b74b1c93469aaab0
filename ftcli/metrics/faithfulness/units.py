"""Units of measure: what a number with its unit is worth, so that 0.3 m is 30 cm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ftcli.metrics.faithfulness.text import Text, named


@dataclass(frozen=True, slots=True)
class Unit:
    """`factor` of the base unit of its dimension; imperial or metric where both are used."""

    dimension: str
    factor: float = 1.0
    system: str = ""
    offset: float = 0.0
    """Added before the factor: temperatures."""

    def worth(self, value: float) -> float:
        return (value + self.offset) * self.factor


M, I = "metric", "imperial"  # noqa: E741
# Exact by definition: the international yard and pound of 1959, the US liquid gallon.
INCH_MM, POUND_G, GALLON_ML = 25.4, 453.59237, 3785.411784
# dimension → {spellings: (factor, system)}
TABLE: dict[str, dict[str, tuple[float, str]]] = {
    "length": {
        "mm millimetre millimetres millimeter millimeters": (1, M),
        "cm cms centimetre centimetres centimeter centimeters": (10, M),
        "dm": (100, M),
        "m metre metres meter meters": (1000, M),
        "km kilometre kilometres kilometer kilometers kms": (1e6, M),
        "µm micron microns": (1e-3, M),
        "in inch inches": (INCH_MM, I),
        "ft foot feet": (12 * INCH_MM, I),
        "yd yds yard yards": (36 * INCH_MM, I),
        "mi mile miles": (63360 * INCH_MM, I),
    },
    "mass": {
        "mg milligram milligrams": (1e-3, M),
        "mcg µg ug microgram micrograms": (1e-6, M),
        "g gr gram grams gramme grammes": (1, M),
        "kg kgs kilo kilos kilogram kilograms": (1000, M),
        "tonne tonnes ton tons": (1e6, M),
        "oz ounce ounces": (POUND_G / 16, I),
        "lb lbs pound pounds": (POUND_G, I),
    },
    "volume": {
        "ml millilitre millilitres milliliter milliliters cc": (1, M),
        "cl centilitre centilitres centiliter centiliters": (10, M),
        "dl decilitre deciliter": (100, M),
        "l litre litres liter liters ltr": (1000, M),
        "gal gallon gallons": (GALLON_ML, I),
        "quart quarts qt": (GALLON_ML / 4, I),
        "pint pints": (GALLON_ML / 8, I),
    },
    "spoons": {"tsp teaspoon teaspoons": (1, ""), "tbsp tablespoon tablespoons": (3, "")},
    "time": {
        "ms millisecond milliseconds": (1e-3, ""),
        "s sec secs second seconds": (1, ""),
        "min mins minute minutes": (60, ""),
        "h hr hrs hour hours": (3600, ""),
        "d day days": (86400, ""),
        "wk wks week weeks": (604800, ""),
    },
    "months": {
        "month months mo": (1, ""),
        "yr yrs year years": (12, ""),
        "decade decades": (120, ""),
        "century centuries": (1200, ""),
    },
    "power": {"mw": (1e-3, ""), "w watt watts": (1, ""), "kw kilowatt kilowatts": (1000, "")},
    "horsepower": {"hp horsepower": (1, "")},
    "voltage": {"mv": (1e-3, ""), "v volt volts": (1, ""), "kv": (1000, "")},
    "current": {"ma milliamp milliamps": (1e-3, ""), "amp amps ampere amperes": (1, "")},
    "charge": {"mah": (1, ""), "ah": (1000, "")},
    "energy": {"wh": (1, ""), "kwh": (1000, "")},
    "calories": {"kcal calorie calories cal cals": (1, "")},
    "joules": {"j": (1, ""), "kj": (1000, "")},
    "frequency": {"hz hertz": (1, ""), "khz": (1e3, ""), "mhz": (1e6, ""), "ghz": (1e9, "")},
    "rotation": {"rpm": (1, "")},
    "data": {
        "kb": (1e3, ""),
        "mb megabyte megabytes": (1e6, ""),
        "gb gigabyte gigabytes": (1e9, ""),
        "tb terabyte terabytes": (1e12, ""),
    },
    "data rate": {"kbps": (1e3, ""), "mbps": (1e6, ""), "gbps": (1e9, "")},
    "picture": {"mp megapixel megapixels": (1e6, ""), "px pixel pixels": (1, "")},
    "dots": {"dpi ppi": (1, "")},
    "lines": {"p": (1, "")},
    "pressure": {
        "bar bars": (1, ""),
        "mbar": (1e-3, ""),
        "psi": (0.0689475729, ""),
        "atm": (1.01325, ""),
        "mmhg": (1.33322e-3, ""),
        "pa": (1e-5, ""),
        "hpa": (1e-3, ""),
        "kpa": (1e-2, ""),
    },
    "grammage": {"gsm": (1, "")},
    "speed": {"kmh kph": (1, M), "mph": (1.609344, I), "knots": (1.852, "")},
    "sound": {"db decibel decibels dba": (1, "")},
    "light": {"lm lumen lumens": (1, "")},
    "lux": {"lux": (1, "")},
    "colour temperature": {"kelvin": (1, "")},
    "share": {"% percent percentage": (1, ""), "‰": (0.1, "")},
    "angle": {"° degree degrees deg": (1, "")},
    "fineness": {"denier den": (1, "")},
    "karat": {"kt karat karats": (1, ""), "ct carat carats": (1, "")},
    "dose": {"iu": (1, ""), "mmol": (1, "")},
    "dioptre": {"dioptre dioptres diopter diopters": (1, "")},
    "force": {"nm": (1, ""), "newton newtons": (1, "")},
    "resistance": {"ohm ohms": (1, "")},
    "fold": {"x": (1, "")},
    "USD": {"$ usd us$ dollar dollars bucks buck": (1, ""), "cent cents": (0.01, "")},
    "EUR": {"€ eur euro euros": (1, ""), "eurocent": (0.01, "")},
    "GBP": {"£ gbp quid": (1, ""), "pence": (0.01, "")},
    "JPY": {"¥ yen jpy": (1, "")},
    "INR": {"₹ inr rupee rupees rs": (1, "")},
    "CHF": {"chf": (1, "")},
    "SEK": {"sek": (1, "")},
    "CAD": {"cad": (1, "")},
    "AUD": {"aud": (1, "")},
}
CURRENCIES = named("USD EUR GBP JPY INR CHF SEK CAD AUD")
CELSIUS = Unit("temperature", 1.0, M)
FAHRENHEIT = Unit("temperature", 5 / 9, I, -32.0)
# Words that follow `in` where it is no inch.
NO_INCH = named(
    "the a an our your its their his her my this that these those each every any all "
    "total one two three stock store and or with which front case order addition sizes "
    "size colour colours color colors length width height depth diameter weight style "
    "person public black white red blue green grey gray brown pink beige silver gold "
    "various different both many most some just less under over between about as to by "
    "on of at for from"
)
# Counted before a unit it belongs to: `5 working days`.
BEFORE_DAYS = named("working business full whole long short consecutive calendar")
SQUARES = {"²": "2", "2": "2", "³": "3", "3": "3"}


@lru_cache
def _spelled() -> dict[str, Unit]:
    return {
        word: Unit(dimension, factor, system)
        for dimension, units in TABLE.items()
        for words, (factor, system) in units.items()
        for word in words.split()
    }


# Letters that are units only right behind the digits or after one space, and short ones that are
# also words.
DOUBTFUL = named("d p x m in s mo rs den deg bar bars px cal mp")


@dataclass(frozen=True)
class UnitFound:
    """Units that the tokens up to `after` may be (pounds weigh and cost)."""

    units: tuple[Unit, ...]
    after: int


def unit_at(text: Text, index: int, *, value: float, in_words: bool = False) -> UnitFound | None:
    """The unit that begins at this token, behind a number of this value."""
    word = text.at(index)
    if not word or not text.same_sentence(index, index - 1):
        return None
    if word == "x" and index + 1 < len(text.tokens) and text.tokens[index + 1].sort == "number":
        return None
    found = _special(text, index, value) or _letters(text, index, value)
    if found is None and word in BEFORE_DAYS and text.at(index + 1) in {"day", "days", "weeks"}:
        return unit_at(text, index + 1, value=value)
    if found is None:
        found = _powers(text, index)
    unit = _spelled().get(word.removesuffix("'s"))
    if found is None and unit is not None and not _is_no_unit(text, index, in_words):
        units: tuple[Unit, ...] = (unit, Unit("GBP")) if word in {"pound", "pounds"} else (unit,)
        if word in {"degree", "degrees", "°", "deg"}:
            units = (unit, CELSIUS, FAHRENHEIT)
        found = UnitFound(units, index + 1)
    return _per(text, found) if found is not None else None


def currency_before(text: Text, index: int) -> Unit | None:
    """The currency that stands right before a number."""
    word = text.at(index)
    unit = _spelled().get(word)
    is_one = unit is not None and unit.dimension in CURRENCIES and unit.factor == 1.0
    return unit if is_one and (not word.isalpha() or word in CODES) else None


CODES = named("usd eur gbp chf cad aud inr jpy sek rs")


def _special(text: Text, index: int, value: float) -> UnitFound | None:
    """Signs, and letters that mean different things for different numbers."""
    word, next_word = text.at(index), text.at(index + 1)
    glued = text.tokens[index].glued
    if word == "°" and next_word in {"c", "f"} and text.tokens[index + 1].glued:
        return UnitFound((CELSIUS if next_word == "c" else FAHRENHEIT,), index + 2)
    if word in {"degree", "degrees"} and next_word in {"celsius", "fahrenheit", "c", "f"}:
        return UnitFound((CELSIUS if next_word[0] == "c" else FAHRENHEIT,), index + 2)
    if word in {"celsius", "fahrenheit"} or (glued and word in {"c", "f"}):
        return UnitFound((CELSIUS if word[0] == "c" else FAHRENHEIT,), index + 1)
    if word == "%" and text.tokens[index].start - text.tokens[index - 1].end <= 1:
        return UnitFound((Unit("share"),), index + 1)
    if word == '"' and glued and _opens_no_quote(text, index):
        return UnitFound((Unit("length", INCH_MM, I),), index + 1)
    if word == "'" and glued and not text.is_word(index + 1):
        return UnitFound((Unit("length", 12 * INCH_MM, I),), index + 1)
    if word == "per" and next_word in {"cent", "mille"}:
        return UnitFound((Unit("share", 1 if next_word == "cent" else 0.1),), index + 2)
    return None


def _letters(text: Text, index: int, value: float) -> UnitFound | None:
    word, token = text.at(index), text.tokens[index]
    if word == "k" and (token.glued or token.capital):
        if value <= 8:
            return UnitFound((Unit("picture width"),), index + 1)
        if value in {9, 10, 14, 18, 22, 24}:
            return UnitFound((Unit("karat"),), index + 1)
        return UnitFound((Unit("colour temperature"),), index + 1)
    if word == "a" and token.capital and not text.is_word(index + 1):
        return UnitFound((Unit("current"),), index + 1)
    if (
        word == "a"
        and token.capital
        and (token.glued or text.at(index + 1) in {"of", "peak", "at"})
    ):
        return UnitFound((Unit("current"),), index + 1)
    if word == "times" and text.at(index + 1) in {"a", "per"} and text.at(index + 2) == "second":
        return UnitFound((Unit("frequency"),), index + 3)
    if word in {"fl", "fluid"} and text.at(index + 1 + (text.at(index + 1) == ".")) in {
        "oz",
        "ounce",
        "ounces",
    }:
        return UnitFound(
            (Unit("volume", GALLON_ML / 128, I),), index + 2 + (text.at(index + 1) == ".")
        )
    return None


def _powers(text: Text, index: int) -> UnitFound | None:
    """m², cm3, square metres, sq ft, cubic inches."""
    word, power = text.at(index), 0
    if word in {"square", "sq", "cubic"}:
        power, index = (3 if word == "cubic" else 2), index + 1
        index += text.at(index) == "."
        after = index + 1
    else:
        sign = text.at(index + 1)
        if sign in SQUARES and text.tokens[index + 1].glued:
            power, after = int(SQUARES[sign]), index + 2
    unit = _spelled().get(text.at(index))
    if not power or unit is None or unit.dimension != "length":
        return None
    return UnitFound(
        (Unit("area" if power == 2 else "volume", _cubed(unit, power), unit.system),), after
    )


def _cubed(unit: Unit, power: int) -> float:
    # Volumes are in ml.
    return unit.factor**2 if power == 2 else unit.factor**3 / 1000


def _opens_no_quote(text: Text, index: int) -> bool:
    """Whether the signs `"` before it in its sentence are all closed."""
    start = index
    while start > max(0, index - 60) and text.same_sentence(start - 1, index):
        start -= 1
    is_open = False
    for place in range(start, index):
        if text.at(place) == '"':
            # `14"` opens nothing; `"Model 14"` closes.
            inch = text.tokens[place].glued and text.tokens[place - 1].sort == "number"
            is_open = not is_open and not inch
    return not is_open


def _is_no_unit(text: Text, index: int, in_words: bool) -> bool:
    """Whether a short word that may be a unit is none here."""
    word, token = text.at(index), text.tokens[index]
    if word not in DOUBTFUL or (token.glued and not token.joined):
        return False
    after = text.at(index + 1)
    if word == "in":
        return in_words or after in NO_INCH or (text.is_word(index + 1) and token.joined != "")
    if word == "m":
        return in_words or token.capital
    if word == "x":
        return True
    return word in {"d", "p", "s", "rs", "den", "mo"}


def _per(text: Text, found: UnitFound) -> UnitFound:
    """`mg/l`, `km/h`, `g/m²`: what stands behind the stroke belongs to the unit."""
    after = found.after
    if text.at(after) != "/" or not text.is_word(after + 1):
        return found
    word = text.at(after + 1)
    if word not in _spelled():
        return found
    end = after + 2
    if text.at(end) in SQUARES and text.tokens[end].glued:
        end += 1
    if found.units[0].dimension == "length" and word == "h":
        factor = found.units[0].factor / 1e6
        return UnitFound((Unit("speed", factor, M),), end)
    return UnitFound(found.units, end)
