"""Writes to captured tables with SQLAlchemy, like an application: insert, update, nothing, delete."""

import os
from decimal import Decimal

from sqlalchemy import ForeignKey, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]
    orders: Mapped[list["Order"]] = relationship(cascade="all, delete-orphan", order_by="Order.id")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    total: Mapped[Decimal]


engine = create_engine(os.environ["DATABASE_URL"].replace("postgres://", "postgresql+psycopg://"))
with Session(engine) as session:
    customer = Customer(name="Ada", email="ada@example.com", orders=[Order(total=Decimal("12.50")), Order(total=Decimal("3"))])
    session.add(customer)
    session.commit()

    customer.name = "Ada L."
    customer.orders[0].total = Decimal("13")
    session.commit()

    customer.email = "ada@example.org"  # is excluded
    customer.orders[1].total = Decimal("3.00")  # the same number
    session.commit()

    customer.name = "nobody"
    session.flush()
    session.rollback()

    session.delete(customer)
    session.commit()

    assert session.execute(text("select count(*) from orders")).scalar() == 0
