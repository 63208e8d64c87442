"""The parameters of a picture, and how they are sampled: an Identity (the person) and a View (the photo)."""

from dataclasses import dataclass, field, fields

import numpy as np

from data.images import SIZE

OCCLUSIONS = ("none", "sunglasses", "mask", "hand", "hat", "scarf")


def factor(neutral: float, deviation: float, low: float, high: float):
    """A field that is sampled from a normal distribution around its neutral value and clipped to [low, high]."""
    return field(default=neutral, metadata={"deviation": deviation, "low": low, "high": high})


def uniform(low: float, high: float):
    """A field that is sampled uniformly from [low, high]; its default is the middle."""
    return field(default=(low + high) / 2, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Identity:
    """What is the same in all photos of a person. `Identity()` is the mean face. Lengths are in pixels."""

    face_width: float = factor(1.0, 0.06, 0.84, 1.16)  # scale of the whole outline
    skull_height: float = factor(0.0, 2.2, -5, 5)
    cheek_width: float = factor(0.0, 1.6, -4, 4)
    jaw_width: float = factor(0.0, 2.8, -6, 6)
    chin_width: float = factor(0.0, 2.8, -6, 6)
    chin_length: float = factor(0.0, 2.4, -5, 5)
    eye_spacing: float = factor(0.0, 1.3, -3, 3)
    eye_height: float = factor(0.0, 1.1, -2.5, 2.5)
    eye_width: float = factor(8.8, 0.75, 6.6, 11)  # half the opening
    eye_opening: float = factor(4.2, 0.6, 2.6, 6)  # half the opening
    eye_tilt: float = factor(0.05, 0.08, -0.15, 0.25)  # radians, outer corner up
    eye_tone: float = uniform(0, 1)  # from dark brown over green to blue
    eyelid_crease: float = uniform(0, 1)
    lashes: float = uniform(0, 1)
    brow_height: float = factor(11.0, 1.3, 8, 14.5)
    brow_thickness: float = factor(1.5, 0.5, 0.5, 3)
    brow_length: float = factor(10.5, 1.0, 8, 13)  # half the length
    brow_arch: float = factor(2.0, 1.0, -0.5, 4.5)
    brow_tilt: float = factor(-0.06, 0.09, -0.26, 0.18)  # radians, outer end up
    nose_length: float = factor(20.3, 1.9, 16, 25)
    nose_width: float = factor(7.4, 1.1, 5, 10.5)  # half the width at the wings
    nose_bridge: float = factor(3.2, 0.6, 1.8, 4.8)
    nose_tip: float = factor(1.0, 0.22, 0.5, 1.6)  # relief of the tip
    nose_bend: float = factor(0.0, 0.7, -2, 2)  # shift of the tip to one side
    mouth_height: float = factor(40.7, 1.4, 37.5, 44)
    mouth_width: float = factor(13.8, 1.5, 10, 18)  # half the width
    upper_lip: float = factor(2.9, 0.8, 1.2, 5)
    lower_lip: float = factor(4.0, 0.9, 2, 6.5)
    mouth_curve: float = factor(0.9, 0.7, -1, 2.6)  # corners up at rest
    lip_colour: float = uniform(0.15, 0.75)
    ear_size: float = factor(9.5, 1.2, 6.5, 13)
    ear_spread: float = factor(5.5, 1.5, 1.5, 10)
    skin_tone: float = uniform(0, 1)
    skin_warmth: float = factor(0.0, 0.4, -1, 1)
    blush: float = uniform(0, 1)
    hair_tone: float = uniform(0, 1)
    hair_red: float = uniform(0, 1)
    hair_grey: float = uniform(0, 1)
    hair_length: float = uniform(0, 1)  # shaved, short, to the ears, to the shoulders
    hair_volume: float = factor(7, 3, 2, 16)
    hair_wave: float = uniform(0, 1)
    hair_parting: float = uniform(-0.7, 0.7)
    hairline: float = factor(-27.0, 2.6, -36, -21)
    temple_recession: float = uniform(0, 7)
    fringe: float = uniform(0, 1)
    beard: float = uniform(0, 1)
    moustache: float = uniform(0, 1)
    age: float = uniform(0, 1)
    freckles: float = uniform(0, 1)
    moles: float = uniform(0, 1)
    mark_seed: int = 0  # positions of freckles and moles


@dataclass(frozen=True)
class View:
    """What differs between photos. `View()` is a clean frontal portrait. Angles are in degrees, lengths in pixels."""

    yaw: float = factor(0, 19, -48, 48)  # positive: the face turns to the image's right
    pitch: float = factor(0, 9, -24, 24)  # positive: the face looks up
    roll: float = factor(0, 5, -15, 15)
    light_azimuth: float = factor(-20, 45, -85, 85)  # negative: from the image's left
    light_elevation: float = factor(30, 22, -25, 75)
    light_strength: float = factor(0.55, 0.2, 0.15, 1.0)
    ambient: float = factor(0.6, 0.11, 0.3, 0.85)
    light_warmth: float = factor(0, 0.45, -1, 1)  # blue to orange
    smile: float = factor(0.5, 0.5, -0.7, 1.4)
    mouth_opening: float = factor(0, 0.3, 0, 1)
    brow_raise: float = factor(0, 0.4, -0.8, 1)
    eye_closing: float = factor(0, 0.25, 0, 1)
    gaze_x: float = factor(0, 0.4, -1, 1)
    gaze_y: float = factor(0, 0.3, -1, 1)
    occlusion: str = "none"
    occlusion_place: float = 0.5  # in [0, 1]: how much is covered, or from which side
    occlusion_tone: float = 0.5  # in [0, 1]: colour of the cover
    blur: float = 0.0  # sigma of a Gaussian
    motion: float = 0.0  # length of motion blur
    motion_angle: float = 0.0
    resolution: int = SIZE  # the picture is reduced to this side and enlarged again
    noise: float = 0.0  # standard deviation of sensor noise, in grey levels
    jpeg_quality: int = 100  # 100: no compression
    shift_x: float = factor(0, 1.6, -5, 5)
    shift_y: float = factor(0, 1.6, -5, 5)
    scale: float = factor(1.0, 0.04, 0.88, 1.12)
    background_seed: int = 0  # backdrop and clothes
    noise_seed: int = 0

    def __post_init__(self):
        if self.occlusion not in OCCLUSIONS:
            raise ValueError(f"occlusion {self.occlusion!r} is not one of {', '.join(OCCLUSIONS)}")


def sample_factors(record, rng: np.random.Generator, difficulty: float) -> dict[str, float]:
    """Sample every field that was declared with `factor` or `uniform`."""
    values = {}
    for entry in fields(record):
        if "deviation" in entry.metadata:
            value = entry.default + difficulty * entry.metadata["deviation"] * rng.standard_normal()
            values[entry.name] = float(np.clip(value, entry.metadata["low"], entry.metadata["high"]))
        elif "low" in entry.metadata:
            values[entry.name] = float(rng.uniform(entry.metadata["low"], entry.metadata["high"]))
    return values


def sample_identity(rng: np.random.Generator) -> Identity:
    """Sample a person. Beard, hair length, brows and lips depend on one hidden trait; the rest is independent."""
    values = sample_factors(Identity, rng, 1.0)
    bearded = rng.random() < 0.5
    values["beard"] = values["beard"] ** 0.6 * (bearded and rng.random() < 0.55)
    values["moustache"] = values["moustache"] ** 0.6 * (bearded and rng.random() < 0.6)
    values["hair_length"] = values["hair_length"] ** (1.6 if bearded else 0.7)
    values["lip_colour"] *= 0.6 if bearded else 1.0
    values["lashes"] *= 0.3 if bearded else 1.0
    values["jaw_width"] += 1.5 if bearded else -1.0
    values["brow_thickness"] *= 1.2 if bearded else 0.85
    # Red or grey hair, many freckles and many wrinkles are rare: powers make large values unlikely.
    values["hair_red"] **= 5
    values["age"] **= 1.3
    values["hair_grey"] = values["hair_grey"] ** 5 * (0.3 + values["age"])
    values["freckles"] **= 4
    values["moles"] **= 2
    # Dark skin makes dark hair and eyes more likely, but does not determine them.
    values["hair_tone"] *= 1 - 0.75 * values["skin_tone"]
    values["eye_tone"] *= 1 - 0.7 * values["skin_tone"]
    values["temple_recession"] *= 0.4 + 0.8 * values["age"] * bearded
    return Identity(**values, mark_seed=int(rng.integers(2**31)))


def sample_view(rng: np.random.Generator, difficulty: float = 1.0) -> View:
    """Sample a view. difficulty: from 0, a clean frontal portrait, to 1, a difficult photo."""
    values = sample_factors(View, rng, difficulty)
    if rng.random() < 0.3 * difficulty:
        values["occlusion"] = str(rng.choice(OCCLUSIONS[1:]))
    values["occlusion_place"], values["occlusion_tone"] = rng.random(2).tolist()
    blurred, smeared, small, noisy, compressed = rng.random(5) < np.array([0.3, 0.12, 0.3, 0.5, 0.5]) * difficulty
    values["blur"] = float(blurred * rng.uniform(0.4, 1.8))
    values["motion"] = float(smeared * rng.uniform(3, 8))
    values["motion_angle"] = float(rng.uniform(0, 180))
    values["resolution"] = int(rng.uniform(24, 80)) if small else SIZE
    values["noise"] = float(noisy * rng.gamma(2.0, 3.0))
    values["jpeg_quality"] = int(rng.uniform(25, 90)) if compressed else 100
    background_seed, noise_seed = rng.integers(2**31, size=2).tolist()
    return View(**values, background_seed=background_seed, noise_seed=noise_seed)


def make_identity(seed: int, number: int) -> Identity:
    """Sample the identity with this number. It depends only on the two integers (>= 0)."""
    return sample_identity(np.random.default_rng((seed, number)))


def make_view(seed: int, identity: int, image: int, difficulty: float = 1.0) -> View:
    """Sample the view of an image of an identity. It depends only on the arguments (integers >= 0)."""
    # NumPy draws the same numbers for the seeds (a, b) and (a, b, 0). So image + 1 is used, which is never 0.
    return sample_view(np.random.default_rng((seed, identity, image + 1)), difficulty)
