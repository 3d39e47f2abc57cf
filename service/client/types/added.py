"""What the client adds to an answer."""

from service.client.types.checkpoints import Registration


class Registered(Registration):
    """The answer to a registration. `created` is False where the same checkpoint was registered before."""

    created: bool
