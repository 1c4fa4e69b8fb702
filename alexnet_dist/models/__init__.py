"""AlexNet for one device: the network, its normalisation, its initialisations."""
