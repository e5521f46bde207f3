"""Which nodes and functions of Polars' expression tree look at one row only.

The names are those of the serialised tree of Polars 2.1. A function is written ``Family.Member`` when Polars
groups it (``StringExpr.Contains``), else by its one name (``Abs``). What stands in none of these tables is
refused.
"""

from __future__ import annotations

from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS: Final = _names(
    """
    Abs AsList AsStruct Atan2 Ceil Clip Coalesce Cut Erf Erfc Exp FillNull Floor Hash Log Log1p
    MaxHorizontal MeanHorizontal MinHorizontal Negate Reinterpret RepeatBy Replace ReplaceStrict Round
    RoundSF Sign SumHorizontal Truncate
    """
)
"""Functions without a family that give each row a value made of that row."""

FAMILIES: Final[dict[str, frozenset[str]]] = {
    family: _names(members)
    for family, members in {
        "Trigonometry": """
            Cos Cot Sin Tan ArcCos ArcSin ArcTan Cosh Sinh Tanh ArcCosh ArcSinh ArcTanh Degrees Radians
        """,
        "Pow": "Generic Sqrt Cbrt",
        "Bitwise": "CountOnes CountZeros LeadingOnes LeadingZeros TrailingOnes TrailingZeros",
        "Boolean": """
            IsFinite IsInfinite IsNan IsNotNan IsNull IsNotNull IsBetween IsClose IsIn AllHorizontal
            AnyHorizontal Not
        """,
        "FillNullWithStrategy": "Zero One",
        "Range": "IntRanges DateRanges DatetimeRanges TimeRanges LinearSpaces",
        "Business": "AddBusinessDay IsBusinessDay BusinessDayCount",
        "Categorical": "EndsWith StartsWith LenBytes LenChars Slice",
        "StringExpr": """
            Contains ContainsAny CountMatches HexDecode HexEncode Base64Decode Base64Encode EndsWith
            EscapeRegex Extract ExtractAll ExtractGroups ExtractMany Find FindMany Format Head
            ConcatHorizontal JsonDecode JsonPathMatch LenBytes LenChars Normalize PadEnd PadStart Replace
            ReplaceMany Reverse Slice Split SplitRegex SplitExact SplitN StartsWith StripChars
            StripCharsEnd StripCharsStart StripPrefix StripSuffix Strptime Tail ToDecimal ToInteger
            Lowercase Titlecase Uppercase ZFill
        """,
        "BinaryExpr": """
            Contains HexDecode HexEncode Base64Decode Base64Encode EndsWith StartsWith Get Head Tail Slice
            Size Reinterpret
        """,
        "TemporalExpr": """
            BaseUtcOffset CastTimeUnit Century Combine ConvertTimeZone DSTOffset Date DatetimeFunction Day
            DaysInMonth Duration Hour IsLeapYear IsoYear Microsecond Millennium Millisecond Minute Month
            MonthEnd MonthStart Nanosecond OffsetBy OrdinalDay Quarter Replace ReplaceTimeZone Round Second
            Time TimeStamp ToString TotalDays TotalHours TotalMicroseconds TotalMilliseconds TotalMinutes
            TotalNanoseconds TotalSeconds Truncate Week WeekDay Year
        """,
        "ListExpr": """
            ArgMax ArgMin Concat Contains CountMatches Diff DropNulls Gather GatherEvery Get Join Length
            Max Mean Median Min SetOperation Shift Slice Sort Std Sum ToArray ToStruct Var
        """,
        "ArrayExpr": """
            ArgMax ArgMin Concat Contains CountMatches Dot Get Join Length Max Mean Median Min Shift Slice
            Sort Std Sum ToList ToStruct Var
        """,
        "StructExpr": """
            Drop FieldByName JsonEncode PrefixFields RenameFields SelectFields SuffixFields
        """,
    }.items()
}
"""Functions that belong to a family, likewise."""

LITERAL_ARGUMENTS: Final = _names(
    """
    Replace ReplaceStrict StringExpr.ContainsAny StringExpr.ExtractMany StringExpr.FindMany
    StringExpr.ReplaceMany
    """
)
"""Functions whose second and third arguments are tables of values: a column there would stand for *all* its
rows.
"""

SERIES_ARGUMENTS: Final = frozenset(
    ["Boolean.IsIn", "Business.AddBusinessDay", "Business.IsBusinessDay", "Business.BusinessDayCount"]
)
"""Functions that take a literal Series as a table of values."""

INSIDE_LISTS: Final = _names(
    """
    ApproxNUnique ArgMax ArgMin ArgSort ArgUnique ArgWhere CumCount CumMax CumMin CumProd CumSum Diff
    DropNans DropNulls Entropy ExtendConstant GatherEvery IndexOf Interpolate Kurtosis MaxBy MinBy Mode
    NullCount PctChange PeakMax PeakMin Product Quantile Rank Reverse RLEID Shift Skew TopK TopKBy Unique
    RollingExpr FillNullWithStrategy Boolean.All Boolean.Any Boolean.HasNulls Boolean.IsDuplicated
    Boolean.IsEmpty Boolean.IsFirstDistinct Boolean.IsLastDistinct Boolean.IsSorted Boolean.IsUnique
    Bitwise.And Bitwise.Or Bitwise.Xor StringExpr.ConcatVertical
    """
)
"""Functions over many values that are taken inside ``list.eval`` and the like: there the many are one row's
elements.
"""

AGGREGATES_INSIDE_LISTS: Final = _names(
    "Count First Implode Item Last Max Mean Median Min NUnique Quantile Std Sum Var"
)

ONE_NAME_FAMILIES: Final = frozenset({"FillNullWithStrategy", "RollingExpr"})
"""Families that INSIDE_LISTS names as a whole."""

AGGREGATE, MOVING, LENGTH, RANDOM, PYTHON, PHYSICAL = range(6)
"""Why something is refused."""

REASONS: Final = {
    AGGREGATE: "is computed from many rows, and each task sees only its part of them; "
    "use .group_by(...).agg(...)",
    MOVING: "depends on neighbouring rows or on their order, which a split cuts through; "
    "do it on the result, or inside a list column with list.eval",
    LENGTH: "changes the number of rows, or takes some of them; "
    "use .filter(...), .explode(...) or .group_by(...)",
    RANDOM: "gives other values on every attempt; "
    "derive them from the row instead, for example with .hash(seed)",
    PYTHON: "calls a Python function, which Polars runs on whole columns; use .map(fn) or .map_batches(fn)",
    PHYSICAL: "shows how a process stores values, which differs from task to task; cast to a type instead",
}

REFUSED: Final[dict[str, int]] = {
    name: reason
    for reason, names in {
        AGGREGATE: """
            Agg Len ApproxNUnique ApproxQuantile ArgMax ArgMin Entropy Hist IndexOf Kurtosis LowerBound
            MaxBy MinBy NullCount Product Quantile SearchSorted Skew UpperBound Correlation QCut Bin
            Boolean.All Boolean.Any Boolean.HasNulls Boolean.IsEmpty Boolean.IsSorted Boolean.IsDuplicated
            Boolean.IsUnique Boolean.IsFirstDistinct Boolean.IsLastDistinct Bitwise.And Bitwise.Or
            Bitwise.Xor StringExpr.ConcatVertical FillNullWithStrategy.Mean FillNullWithStrategy.Min
            FillNullWithStrategy.Max
        """,
        MOVING: """
            Over Rolling Sort SortBy ArgSort CumCount CumMax CumMin CumProd CumSum Diff EwmMean EwmMeanBy
            EwmStd EwmSum EwmSumBy EwmVar Interpolate InterpolateBy PctChange PeakMax PeakMin Rank Reverse
            RLEID Shift SetSortedFlag RollingExpr RollingExprBy FillNullWithStrategy.Forward
            FillNullWithStrategy.Backward Range.IntRange Range.DateRange Range.DatetimeRange
            Range.TimeRange Range.LinearSpace
        """,
        LENGTH: """
            Filter Slice Gather Explode Append ArgUnique ArgWhere DropNans DropNulls ExtendConstant
            GatherEvery Mode Repeat Reshape RLE TopK TopKBy Unique UniqueCounts ValueCounts
            ArrayExpr.Explode
        """,
        RANDOM: "Random ListExpr.Sample",
        PYTHON: """
            AnonymousFunction AnonymousAgg PipeWithDtype CumFoldHorizontal CumReduceHorizontal
            FoldHorizontal ReduceHorizontal StructExpr.MapFieldNames FfiPlugin
        """,
        PHYSICAL: "ToPhysical Categorical.Physical Categorical.To",
    }.items()
    for name in names.split()
}
"""What is known not to be row-local, and why. (Anything unknown is refused too.)"""

PUBLIC_NAMES: Final = {
    "Agg": "an aggregate",
    "Len": "len",
    "Over": "over",
    "Rolling": "rolling",
    "RollingExpr": "a rolling window",
    "RollingExprBy": "a rolling window",
    "AnonymousFunction": "map_elements, map_batches or inspect",
    "AnonymousAgg": "map_groups",
    "Random": "sample or shuffle",
    "Boolean.HasNulls": "has_nulls",
    "StringExpr.ConcatVertical": "str.join",
    "Categorical.Physical": "cat.physical",
    "Categorical.To": "cat.to",
    "FfiPlugin": "an expression plugin",
}
"""How the user writes what the tree calls otherwise."""
