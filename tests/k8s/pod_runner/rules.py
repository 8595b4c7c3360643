"""What the service proxy and the network plugin write into each network namespace, as input of iptables-restore --noflush. Pure.

Services: DNAT of the cluster address to a ready endpoint, chosen at random, in the namespace of the one who connects; a Service
without endpoints refuses. NetworkPolicy: incoming and outgoing packets of a selected pod are checked in its own namespace, after
DNAT, as plugins do; what is forbidden is refused with a reset, where most plugins drop it and the caller waits.
"""
import dataclasses

from .expand import BadObject


@dataclasses.dataclass(frozen=True)
class ServicePort:
    """One port of a Service and where it leads now: [(pod address, port)]."""
    address: str
    port: int
    protocol: str
    endpoints: tuple


@dataclasses.dataclass(frozen=True)
class Peer:
    """A pod as policies see it."""
    namespace: str
    labels: dict
    address: str
    ports: dict


def matches(selector, labels):
    """Whether a label selector chooses something with these labels; an empty one chooses all."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != str(value):
            return False
    for rule in selector.get("matchExpressions", ()):
        key, operator, values = rule["key"], rule["operator"], rule.get("values", ())
        holds = {"In": lambda: labels.get(key) in values, "NotIn": lambda: labels.get(key) not in values,
                 "Exists": lambda: key in labels, "DoesNotExist": lambda: key not in labels}.get(operator)
        if holds is None:
            raise BadObject(f"label selector: unknown operator {operator}")
        if not holds():
            return False
    return True


# A rule that matches nothing. The kernel follows connections only while a rule needs it to: without this one, a Service that loses its
# last endpoint would take the translation of its open connections with it, and they would hang.
_KEEP_FOLLOWING = "-A OUTPUT -d 192.0.2.1 -p tcp --dport 1 -j DNAT --to-destination 192.0.2.1:1"


def _nat(service_ports):
    lines = [_KEEP_FOLLOWING]
    for service in service_ports:
        match = f"-A OUTPUT -d {service.address} -p {service.protocol} --dport {service.port}"
        left = len(service.endpoints)
        for address, port in service.endpoints:
            chance = f" -m statistic --mode random --probability {1 / left:.6f}" if left > 1 else ""
            lines.append(f"{match}{chance} -j DNAT --to-destination {address}:{port}")
            left -= 1
    return lines


def _refused(service_ports):
    """A Service without endpoints answers new connections at once that nobody listens; those it has go on."""
    return [f"-A OUTPUT -d {service.address} -p {service.protocol} --dport {service.port} -m conntrack --ctstate NEW -j REJECT"
            + (" --reject-with tcp-reset" if service.protocol == "tcp" else "")
            for service in service_ports if not service.endpoints]


def _sources(peers_rule, policy, pods, namespaces):
    """What one `from` or `to` list names: [(match of addresses, the pod or None)], or None for everybody."""
    if not peers_rule:
        return None
    found = []
    for peer in peers_rule:
        if "ipBlock" in peer:
            found.append((peer["ipBlock"]["cidr"], peer["ipBlock"].get("except", ()), None))
            continue
        for pod in pods:
            if "namespaceSelector" in peer:
                if not matches(peer["namespaceSelector"], namespaces.get(pod.namespace, {})):
                    continue
            elif pod.namespace != policy["metadata"]["namespace"]:
                continue
            if matches(peer.get("podSelector", {}), pod.labels):
                found.append((pod.address, (), pod))
    return found


def _ports(rule, target):
    """Matches of the `ports` list; [""] where there is none. A named port is looked up at `target`, the pod that is connected to."""
    result = []
    for port in rule.get("ports") or ():
        protocol = port.get("protocol", "TCP").lower()
        number = port.get("port")
        if number is None:
            result.append(f"-p {protocol}")
        elif isinstance(number, int):
            last = f":{port['endPort']}" if "endPort" in port else ""
            result.append(f"-p {protocol} --dport {number}{last}")
        elif target is not None and number in target.ports:
            result.append(f"-p {protocol} --dport {target.ports[number]}")
    return result if rule.get("ports") else [""]


def _chain(chain, flag, rules, everyone):
    """Packets that a policy's rules let through. `rules`: [(policy, rule, peers list, pod whose ports are meant or None)]."""
    pods, namespaces = everyone
    lines = []
    for policy, rule, peers_rule, own in rules:
        sources = _sources(peers_rule, policy, pods, namespaces)
        if sources is None:
            sources = [("0.0.0.0/0", (), None)]
        for address, excepted, pod in sources:
            for port in _ports(rule, own or pod):
                if not excepted:
                    lines.append(f"-A {chain} {flag} {address} {port} -j ACCEPT")
                    continue
                name = f"{chain[0]}X{len(lines)}"
                lines += [f":{name} - [0:0]", f"-A {chain} {flag} {address} {port} -j {name}"]
                lines += [f"-A {name} {flag} {out} -j RETURN" for out in excepted] + [f"-A {name} -j ACCEPT"]
    return lines


def _policies(pod, policies, everyone, node_ip):
    """Filter rules of the namespace of `pod`."""
    chosen = [policy for policy in policies if policy["metadata"]["namespace"] == pod.namespace
              and matches(policy["spec"].get("podSelector", {}), pod.labels)]
    lines = []
    for chain, kind, flag, key, interface in (("INPUT", "Ingress", "-s", "from", "-i lo"), ("OUTPUT", "Egress", "-d", "to", "-o lo")):
        isolating = [policy for policy in chosen if kind in policy["spec"].get("policyTypes", ["Ingress"])]
        if not isolating:
            continue
        rules = [(policy, rule, rule.get(key), pod if kind == "Ingress" else None)
                 for policy in isolating for rule in policy["spec"].get(kind.lower()) or ()]
        lines += [f"-A {chain} {interface} -j ACCEPT", f"-A {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"]
        if kind == "Ingress":
            # The node reaches its own pods whatever policies say: probes come from there.
            lines.append(f"-A {chain} -s {node_ip} -j ACCEPT")
        lines += _chain(chain, flag, rules, everyone)
        lines += [f"-A {chain} -p tcp -j REJECT --reject-with tcp-reset", f"-A {chain} -j REJECT"]
    return lines


def tables(service_ports, pod=None, policies=(), everyone=((), {}), node_ip="0.0.0.0"):
    """The whole input of iptables-restore --noflush for one namespace. `pod`: the Peer it belongs to, None for the node.
    `everyone`: (all pods, labels of namespaces by name)."""
    body = _refused(service_ports) + (_policies(pod, policies, everyone, node_ip) if pod else [])
    # iptables-restore wants chains declared before rules.
    filter_lines = [line for line in body if line.startswith(":")] + [line for line in body if not line.startswith(":")]
    # Rules are flushed and chains kept, so that nothing is without rules for a moment.
    return "\n".join(["*nat", "-F", ":PREROUTING ACCEPT [0:0]", ":INPUT ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ":POSTROUTING ACCEPT [0:0]",
                      *_nat(service_ports), "COMMIT",
                      "*filter", "-F", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]",
                      *filter_lines, "COMMIT", ""])
