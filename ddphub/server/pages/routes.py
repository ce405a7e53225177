"""The pages people look at, in one router."""

from fastapi import APIRouter

from ddphub.server.pages import assets, changes, compare, model, models, sign_in

router = APIRouter()
for _module in (assets, sign_in, models, model, changes, compare):
    router.include_router(_module.router)
