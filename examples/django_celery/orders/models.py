"""What is stored."""

from django.db import models


class Order(models.Model):
    """An order, from when it is taken."""

    item = models.CharField(max_length=100)
    state = models.CharField(max_length=10, default="new")

    def __str__(self) -> str:
        return f"order {self.pk}: {self.item}, {self.state}"
