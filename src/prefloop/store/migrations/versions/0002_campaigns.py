"""Campaigns, tasks, accounts, the audit log; judgments get versions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("last", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "campaigns",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run"),
        sa.UniqueConstraint("id"),
    )
    op.create_table(
        "events",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "invites",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("group", sa.Text, server_default="", nullable=False),
        sa.Column("account", sa.Text, nullable=True),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("used", sa.Float, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "strata",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("slice", sa.Text, nullable=False),
        sa.Column("mix", sa.Text, nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("needed", sa.Integer, nullable=False),
        sa.Column("counted", sa.Integer, server_default="0", nullable=False),
        sa.Column("handed", sa.Integer, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("run", "slice", "mix"),
    )
    op.create_table(
        "desks",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("handed", sa.Integer, server_default="0", nullable=False),
        sa.Column("pairs", sa.Integer, server_default="0", nullable=False),
        sa.Column("turned", sa.Integer, server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["annotator"], ["annotators.name"], name="desks_annotator"),
        sa.PrimaryKeyConstraint("run", "annotator"),
    )
    op.create_table(
        "accounts",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("group", sa.Text, server_default="", nullable=False),
        sa.Column("password", sa.Text, nullable=True),
        sa.Column("token", sa.Text, nullable=True),
        sa.Column("paused", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["name"], ["annotators.name"], name="accounts_name"),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("token"),
    )
    op.create_table(
        "campaign_versions",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["run"], ["campaigns.run"], name="campaign_versions_run"),
        sa.PrimaryKeyConstraint("run", "version"),
    )
    op.create_table(
        "conversations",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("turns", sa.JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("opened", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["annotator"], ["annotators.name"], name="conversations_annotator"),
        sa.ForeignKeyConstraint(["run"], ["campaigns.run"], name="conversations_run"),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tasks",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("comparison_id", sa.Text, nullable=False),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("repeat", sa.Integer, server_default="0", nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("campaign_version", sa.Integer, nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
        sa.Column("uniform", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("opened", sa.Float, nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("draft", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["annotator"], ["annotators.name"], name="tasks_annotator"),
        sa.ForeignKeyConstraint(
            ["run", "comparison_id"], ["comparisons.run", "comparisons.id"], name="tasks_comparison"
        ),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("run", "comparison_id", "annotator", "repeat", name="tasks_key"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("tasks") as batch:
        batch.create_index("tasks_leases", ["run", "state", "lease_until"])
        batch.create_index("tasks_mine", ["run", "annotator", "state", "number", "kind"])

    op.create_table(
        "sessions",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("csrf", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["account"], ["accounts.name"], name="sessions_account"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("annotators", sa.Column("group", sa.Text, server_default="", nullable=False))
    op.add_column("comparisons", sa.Column("slice", sa.Text, server_default="", nullable=False))
    op.add_column("comparisons", sa.Column("mix", sa.Text, server_default="", nullable=False))
    op.add_column("comparisons", sa.Column("priority", sa.Float, server_default="0", nullable=False))
    op.add_column("comparisons", sa.Column("shuffle", sa.Float, server_default="0", nullable=False))
    op.add_column("comparisons", sa.Column("shared", sa.Boolean, server_default=sa.false(), nullable=False))
    op.add_column("comparisons", sa.Column("gold", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("comparisons", sa.Column("held", sa.Text, server_default="not offered", nullable=False))
    op.add_column("comparisons", sa.Column("needed", sa.Integer, server_default="1", nullable=False))
    op.add_column("comparisons", sa.Column("counted", sa.Integer, server_default="0", nullable=False))
    op.add_column("comparisons", sa.Column("taken", sa.Integer, server_default="0", nullable=False))
    op.add_column("comparisons", sa.Column("shown", sa.Integer, server_default="0", nullable=False))
    op.add_column("comparisons", sa.Column("turned", sa.Integer, server_default="0", nullable=False))
    op.create_index(
        "comparisons_gold",
        "comparisons",
        ["run", "shuffle"],
        sqlite_where=sa.text("gold IS NOT NULL"),
        postgresql_where=sa.text("gold IS NOT NULL"),
    )
    op.create_index(
        "comparisons_held",
        "comparisons",
        ["run", "shuffle"],
        sqlite_where=sa.text("held != ''"),
        postgresql_where=sa.text("held != ''"),
    )
    op.create_index(
        "comparisons_shared",
        "comparisons",
        ["run", "shuffle"],
        sqlite_where=sa.text("shared"),
        postgresql_where=sa.text("shared"),
    )
    op.create_index(
        "comparisons_targeted",
        "comparisons",
        ["run", "slice", "mix", sa.text("priority DESC"), "shuffle"],
        sqlite_where=sa.text("taken < needed AND held = ''"),
        postgresql_where=sa.text("taken < needed AND held = ''"),
    )
    op.create_index(
        "comparisons_uniform",
        "comparisons",
        ["run", "shuffle"],
        sqlite_where=sa.text("taken < needed AND held = ''"),
        postgresql_where=sa.text("taken < needed AND held = ''"),
    )

    with op.batch_alter_table("judgments", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.add_column(sa.Column("repeat", sa.Integer, server_default="0", nullable=False))
        batch.add_column(sa.Column("version", sa.Integer, server_default="1", nullable=False))
        batch.add_column(sa.Column("latest", sa.Boolean, server_default=sa.true(), nullable=False))
        batch.add_column(sa.Column("withdrawn", sa.Boolean, server_default=sa.false(), nullable=False))
        batch.add_column(sa.Column("status", sa.Text, server_default="counted", nullable=False))
        batch.add_column(sa.Column("late", sa.Boolean, server_default=sa.false(), nullable=False))
        batch.add_column(sa.Column("uniform", sa.Boolean, server_default=sa.false(), nullable=False))
        batch.add_column(sa.Column("choice", sa.Integer, nullable=True))
        batch.add_column(sa.Column("left", sa.Integer, nullable=True))
        batch.add_column(sa.Column("axes", sa.JSON(none_as_null=True), nullable=True))
        batch.add_column(sa.Column("seconds", sa.Float, nullable=True))
        batch.add_column(sa.Column("task", sa.Text, nullable=True))
        batch.add_column(sa.Column("campaign_version", sa.Integer, nullable=True))
        batch.add_column(sa.Column("nonce", sa.Text, nullable=True))
        batch.add_column(sa.Column("at", sa.Float, nullable=True))
        batch.add_column(sa.Column("server_seconds", sa.Float, nullable=True))
        batch.drop_constraint("judgments_key", type_="unique")
        batch.create_unique_constraint("judgments_key", ["run", "comparison_id", "annotator", "repeat", "version"])
        batch.create_index("judgments_annotator_index", ["run", "annotator", "number"])
        batch.create_index("judgments_run_index", ["run", "number"])
        batch.create_index("judgments_task_index", ["task"])
        batch.create_unique_constraint("judgments_nonce", ["nonce"])

    _count_labels()


def _count_labels() -> None:
    """What the new columns of `comparisons` say of labels and prompts that are there already."""
    comparisons = sa.table(
        "comparisons",
        *(sa.column(name) for name in ("number", "run", "id", "slice", "counted", "taken")),
        sa.column("prompt", sa.JSON),
    )
    judgments = sa.table("judgments", sa.column("run"), sa.column("comparison_id"))
    same = (judgments.c.run == comparisons.c.run) & (judgments.c.comparison_id == comparisons.c.id)
    labels = sa.select(sa.func.count()).select_from(judgments).where(same).scalar_subquery()
    op.execute(sa.update(comparisons).values(counted=labels, taken=labels))
    connection = op.get_bind()
    for number in connection.execute(sa.select(comparisons.c.number)).scalars().all():
        mine = comparisons.c.number == number
        prompt = connection.execute(sa.select(comparisons.c.prompt).where(mine)).scalar_one()
        if slice_ := prompt.get("slice", ""):
            connection.execute(sa.update(comparisons).where(mine).values(slice=slice_))
