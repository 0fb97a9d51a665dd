"""The tables of the label database. Times are seconds since 1970 by `store/clock.py`; names and texts are as given.

Judgments and events are only ever added (but for `latest`); all else is settings, or bookkeeping that they imply.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    true,
)

NOT_OFFERED = "not offered"
"""What keeps a comparison back that no campaign has taken up yet."""

metadata = MetaData()

comparisons = Table(
    "comparisons",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("run", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("items", JSON, nullable=False),
    # What a campaign knows of an item.
    Column("slice", Text, nullable=False, server_default=""),
    Column("mix", Text, nullable=False, server_default=""),  # declared kind of prompt: easy, hard, adversarial, ...
    Column("priority", Float, nullable=False, server_default="0"),
    Column("shuffle", Float, nullable=False, server_default="0"),  # place in the random order of uniform picks
    Column("shared", Boolean, nullable=False, server_default=false()),  # of the calibration pool
    Column("gold", JSON(none_as_null=True)),  # {"ranking", "note"}: an answer that is known
    Column("held", Text, nullable=False, server_default=NOT_OFFERED),  # why it is not handed out; empty: it is
    Column("needed", Integer, nullable=False, server_default="1"),  # labels wanted
    Column("counted", Integer, nullable=False, server_default="0"),  # labels that count towards them
    Column("taken", Integer, nullable=False, server_default="0"),  # counted, and live leases
    Column("shown", Integer, nullable=False, server_default="0"),  # how often it was handed out
    Column("turned", Integer, nullable=False, server_default="0"),  # of these, how often item 1 came first
    UniqueConstraint("run", "id", name="comparisons_key"),
    sqlite_autoincrement=True,
)
_OPEN = (comparisons.c.taken < comparisons.c.needed) & (comparisons.c.held == "")
Index(
    "comparisons_targeted",
    *(comparisons.c[name] for name in ("run", "slice", "mix")),
    comparisons.c.priority.desc(),
    comparisons.c.shuffle,
    sqlite_where=_OPEN,
    postgresql_where=_OPEN,
)
Index("comparisons_uniform", comparisons.c.run, comparisons.c.shuffle, sqlite_where=_OPEN, postgresql_where=_OPEN)
for _name, _where in {
    "comparisons_gold": comparisons.c.gold.is_not(None),
    "comparisons_shared": comparisons.c.shared,
    "comparisons_held": comparisons.c.held != "",
}.items():
    Index(_name, comparisons.c.run, comparisons.c.shuffle, sqlite_where=_where, postgresql_where=_where)

strata = Table(
    "strata",
    metadata,
    Column("run", Text, primary_key=True),
    Column("slice", Text, primary_key=True),
    Column("mix", Text, primary_key=True),
    Column("items", Integer, nullable=False),
    Column("needed", Integer, nullable=False),
    Column("counted", Integer, nullable=False, server_default="0"),
    Column("handed", Integer, nullable=False, server_default="0"),
)

annotators = Table(
    "annotators",
    metadata,
    Column("name", Text, primary_key=True),
    Column("simulated", Boolean, nullable=False),
    Column("group", Text, nullable=False, server_default=""),  # as imported; who has an account declares it there
)

judgments = Table(
    "judgments",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("run", Text, nullable=False),
    Column("comparison_id", Text, nullable=False),
    Column("annotator", Text, ForeignKey("annotators.name", name="judgments_annotator"), nullable=False),
    Column("repeat", Integer, nullable=False, server_default="0"),  # 1: shown again, swapped
    Column("version", Integer, nullable=False, server_default="1"),  # an answer changed, or withdrawn, is a new version
    Column("latest", Boolean, nullable=False, server_default=true()),
    Column("withdrawn", Boolean, nullable=False, server_default=false()),
    Column("status", Text, nullable=False, server_default="counted"),  # counted, extra, gold, repeat or unjudged
    Column("late", Boolean, nullable=False, server_default=false()),  # came after its lease had ended
    Column("uniform", Boolean, nullable=False, server_default=false()),  # of an item picked uniformly
    # Of two items, what the content says too: reading it there takes a parse of it all.
    Column("choice", Integer),  # strength in favour of item 0, below 0 of item 1, 0 a tie
    Column("left", Integer),  # the item that stood left
    Column("axes", JSON(none_as_null=True)),  # strengths by axis, where there are several
    Column("seconds", Float),  # the labeler's own count
    Column("task", Text),
    Column("campaign_version", Integer),
    Column("nonce", Text),
    Column("at", Float),
    Column("server_seconds", Float),  # from handing out to answer
    Column("content", JSON, nullable=False),
    UniqueConstraint("run", "comparison_id", "annotator", "repeat", "version", name="judgments_key"),
    UniqueConstraint("nonce", name="judgments_nonce"),
    ForeignKeyConstraint(["run", "comparison_id"], ["comparisons.run", "comparisons.id"], name="judgments_comparison"),
    Index("judgments_annotator_index", "run", "annotator", "number"),
    Index("judgments_run_index", "run", "number"),
    Index("judgments_task_index", "task"),
    sqlite_autoincrement=True,
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("run", Text, primary_key=True),
    Column("id", Text, nullable=False, unique=True),  # what labelers see in addresses
    Column("state", Text, nullable=False),  # open, paused or closed
    Column("version", Integer, nullable=False),
    Column("salt", Text, nullable=False),  # of the order of things that labelers must not foresee
)

campaign_versions = Table(
    "campaign_versions",
    metadata,
    Column("run", Text, ForeignKey("campaigns.run", name="campaign_versions_run"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("config", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Column("by", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("run", Text, nullable=False),
    Column("comparison_id", Text, nullable=False),
    Column("annotator", Text, ForeignKey("annotators.name", name="tasks_annotator"), nullable=False),
    Column("repeat", Integer, nullable=False, server_default="0"),
    Column("kind", Text, nullable=False),  # item, gold, shared (of the calibration round), repeat or review
    Column("campaign_version", Integer, nullable=False),
    Column("shown", JSON, nullable=False),  # shown[i]: which item stands at place i
    Column("uniform", Boolean, nullable=False),
    Column("state", Text, nullable=False),  # open, done or expired
    Column("opened", Float, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("draft", JSON(none_as_null=True)),
    UniqueConstraint("run", "comparison_id", "annotator", "repeat", name="tasks_key"),
    ForeignKeyConstraint(["run", "comparison_id"], ["comparisons.run", "comparisons.id"], name="tasks_comparison"),
    Index("tasks_leases", "run", "state", "lease_until"),
    Index("tasks_mine", "run", "annotator", "state", "number", "kind"),
    sqlite_autoincrement=True,
)

desks = Table(  # one labeler's place in one campaign
    "desks",
    metadata,
    Column("run", Text, primary_key=True),
    Column("annotator", Text, ForeignKey("annotators.name", name="desks_annotator"), primary_key=True),
    Column("handed", Integer, nullable=False, server_default="0"),  # tasks handed out
    Column("pairs", Integer, nullable=False, server_default="0"),  # of these, two answers side by side
    Column("turned", Integer, nullable=False, server_default="0"),  # of those, with item 1 first
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", Text, ForeignKey("annotators.name", name="accounts_name"), primary_key=True),
    Column("role", Text, nullable=False),  # labeler, reviewer or admin
    Column("group", Text, nullable=False, server_default=""),  # declared, so that figures can be split by it
    Column("password", Text),  # argon2id; none: comes in by a token alone
    Column("token", Text, unique=True),  # SHA-256 of an API token
    Column("paused", Boolean, nullable=False, server_default=false()),
    Column("created", Float, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),  # SHA-256 of what the cookie holds
    Column("account", Text, ForeignKey("accounts.name", name="sessions_account"), nullable=False),
    Column("csrf", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("seen", Float, nullable=False),
)

invites = Table(
    "invites",
    metadata,
    Column("id", Text, primary_key=True),  # SHA-256 of the link's token
    Column("role", Text, nullable=False),
    Column("group", Text, nullable=False, server_default=""),
    Column("account", Text),  # of a link that lets a known person in again
    Column("by", Text, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)

attempts = Table(
    "attempts",
    metadata,
    Column("key", Text, primary_key=True),  # account or address
    Column("count", Integer, nullable=False),
    Column("last", Float, nullable=False),
)

conversations = Table(
    "conversations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("run", Text, ForeignKey("campaigns.run", name="conversations_run"), nullable=False),
    Column("annotator", Text, ForeignKey("annotators.name", name="conversations_annotator"), nullable=False),
    Column("model", Text, nullable=False),  # never sent to the labeler
    Column("turns", JSON, nullable=False),
    Column("state", Text, nullable=False),  # open or done
    Column("opened", Float, nullable=False),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("content", Text, nullable=False),  # canonical JSON, as hashed
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
    sqlite_autoincrement=True,
)
