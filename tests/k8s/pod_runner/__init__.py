"""Runs rendered Kubernetes objects for real on this machine: pods as processes in namespaces, with the kubelet's, the
controllers', the DNS server's and the service proxy's part played. README.md in this folder says what is played and what is not."""
