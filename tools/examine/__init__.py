"""Looks a record set or a verification set over, whole, and collects all that is wrong with it: no error ends it."""

from tools.examine.images import Pixels
from tools.examine.records import examine_records
from tools.examine.report import Report
from tools.examine.verification import examine_bin

__all__ = ["Pixels", "Report", "examine_bin", "examine_records"]
