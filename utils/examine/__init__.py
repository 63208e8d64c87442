"""Looks a record set or a verification set over, whole, and collects all that is wrong with it: no error ends it."""

from utils.examine.images import Pixels
from utils.examine.records import examine_records
from utils.examine.report import Report
from utils.examine.verification import examine_bin

__all__ = ["Pixels", "Report", "examine_bin", "examine_records"]
