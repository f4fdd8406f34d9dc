"""Headlines from templates, clickbait and news, for the generated bank. None of it happened."""

from __future__ import annotations

import string

import numpy as np

CLICKBAIT = (
    "{number} {things} That Will Make You {verb} {again}",
    "You Won't Believe What This {person} Did With {number} {things}",
    "This {person} Tried To {act} And The Result Is {adjective}",
    "Which {thing} Are You Based On Your Favourite {other}?",
    "{number} Reasons Your {thing} Is Actually {adjective}",
    "What Happens When A {person} Finds {number} {things} Will {verb} Your {other}",
    "Here's Why Every {person} Needs {number} {things} Right Now",
    "We Tried To {act} For {number} Days And It Was {adjective}",
    "The {adjective} Truth About {things} Nobody Tells You After {number}",
    "Can You {act} Better Than The Average {person}?",
)
NEWS = (
    "{place} council approves {amount} million budget for {project}",
    "Heavy rain closes {project} near {place} for {amount} hours",
    "{place} elects new {office} after {amount} days of talks",
    "{company} reports {amount} percent rise in quarterly {measure}",
    "{office} of {place} resigns over delayed {project}",
    "Court in {place} rules on {company} {measure} case",
    "{amount} injured as train derails outside {place}",
    "{company} to open {project} in {place}, creating {amount} jobs",
    "Researchers in {place} measure {amount} percent drop in {measure}",
    "{place} and {other_place} sign agreement on {project}",
)
SLOTS: dict[str, tuple[str, ...]] = {
    "number": tuple(str(number) for number in (5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 27, 31)),
    "things": ("Lamps", "Cats", "Recipes", "Tattoos", "Roommates", "Puppies", "Snacks", "Socks"),
    "thing": ("Teapot", "Bookshelf", "Pizza", "Houseplant", "Playlist", "Sandwich", "Umbrella"),
    "other": ("Colour", "Breakfast", "Movie", "Season", "Shoe", "Dessert", "Mood"),
    "verb": ("Laugh", "Cry", "Rethink", "Question", "Change", "Love"),
    "again": ("All Over Again", "Out Loud", "Before Lunch", "Every Single Time", "Forever"),
    "person": ("Grandmother", "Barista", "Student", "Neighbour", "Dentist", "Toddler", "Intern"),
    "act": ("Bake Bread", "Fold Laundry", "Guess A Movie", "Live Without Sugar", "Draw A Horse"),
    "adjective": ("Perfect", "Shocking", "Adorable", "Terrifying", "Genius", "Heartbreaking"),
    "place": ("Norhaven", "Estvale", "Port Lume", "Karsholm", "Veldeburg", "Ostrano", "Mirefield"),
    "other_place": ("Tallow Bay", "Quenby", "Silverau", "Brackwater", "Ardenne Cross", "Lindmoor"),
    "project": ("harbour bridge", "water works", "rail line", "airport", "hospital", "archive"),
    "office": ("mayor", "finance minister", "police chief", "governor", "school board"),
    "company": ("Arbo Steel", "Nordwind", "Halden Foods", "Tessal Bank", "Orix Rail", "Kemmer"),
    "measure": ("profits", "exports", "emissions", "wages", "river levels", "unemployment"),
    "amount": tuple(str(number) for number in range(2, 97)),
}


def write_headline(clickbait: bool, rng: np.random.Generator) -> str:
    """One headline, clickbait or news."""
    templates = CLICKBAIT if clickbait else NEWS
    template = templates[int(rng.integers(len(templates)))]
    slots = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    filled = {name: SLOTS[name][int(rng.integers(len(SLOTS[name])))] for name in slots}
    headline = template.format(**filled)
    return headline[0].upper() + headline[1:]
