"""What is answered."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from .models import Order
from .tasks import ship


@csrf_exempt
@require_POST
@transaction.atomic
def take(request: HttpRequest) -> JsonResponse:
    """Store an order, and have it shipped once it is stored."""
    order = Order.objects.create(item=request.POST["item"])
    ship.delay_on_commit(order.pk)
    return JsonResponse({"id": order.pk, "state": order.state}, status=202)


@require_GET
def show(request: HttpRequest, number: int) -> JsonResponse:
    """Say how far an order is."""
    order = get_object_or_404(Order, pk=number)
    return JsonResponse({"id": order.pk, "state": order.state})
