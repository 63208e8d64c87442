"""Checks a complete record set or verification set and collects everything that is wrong with it."""

from tools.examine.images import Pixels
from tools.examine.records import examine_records
from tools.examine.report import Report
from tools.examine.verification import examine_verification_set

__all__ = ["Pixels", "Report", "examine_records", "examine_verification_set"]
