"""Comparisons, annotators and their judgments."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("items", sa.JSON, nullable=False),
        sa.UniqueConstraint("run", "id", name="comparisons_key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "annotators",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("simulated", sa.Boolean, nullable=False),
    )
    op.create_table(
        "judgments",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("comparison_id", sa.Text, nullable=False),
        sa.Column("annotator", sa.Text, sa.ForeignKey("annotators.name", name="judgments_annotator"), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.UniqueConstraint("run", "comparison_id", "annotator", name="judgments_key"),
        sa.ForeignKeyConstraint(
            ["run", "comparison_id"], ["comparisons.run", "comparisons.id"], name="judgments_comparison"
        ),
        sqlite_autoincrement=True,
    )
