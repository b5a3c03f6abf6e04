"""Searches for universal, label-changing transformations: by family and class, and by place.

A trigger is a universal transformation of small strength that changes labels. At generous strength, with an
uncapped margin, the backdoor's class runs away from the others; so the other classes are the null distribution.

Margins are logit differences between a class and the best other one, averaged over dummies of other classes.
Many transformations (classes, restarts or places) are searched in one batch: they do not interact.
"""

from deepsanitizer.search.cells import answers_of, cells_of, column_means, own_goals
from deepsanitizer.search.dictionary import Scanned, dictionary
from deepsanitizer.search.permutation import Permuting, permutation, permuting
from deepsanitizer.search.places import Places, corners, places, triggers_at
from deepsanitizer.search.probes import PROBES, Probes
from deepsanitizer.search.routes import Routes, places_for, routed, routes
from deepsanitizer.search.shifts import Shifts, shifted, shifts
from deepsanitizer.search.universal import Found, universal

__all__ = ["PROBES", "Found", "Permuting", "Places", "Probes", "Routes", "Scanned", "Shifts", "answers_of", "cells_of",
           "column_means", "corners", "dictionary", "own_goals", "permutation", "permuting", "places", "places_for",
           "routed", "routes", "shifted", "shifts", "triggers_at", "universal"]
