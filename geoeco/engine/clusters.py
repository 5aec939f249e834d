"""thin"""


def prepare_client(client, settings, plan):
    return {}
