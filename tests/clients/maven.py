"""Fetches jars and what they need at run time from Maven Central: maven.py DIRECTORY GROUP:ARTIFACT:VERSION ..."""

import concurrent.futures
import hashlib
import pathlib
import re
import sys
import urllib.request
import xml.etree.ElementTree as xml

CENTRAL = "https://repo1.maven.org/maven2"


def fetch(group, artifact, version, ending):
    address = f"{CENTRAL}/{group.replace('.', '/')}/{artifact}/{version}/{artifact}-{version}.{ending}"
    with urllib.request.urlopen(address, timeout=60) as answer:
        content = answer.read()
    with urllib.request.urlopen(address + ".sha1", timeout=60) as answer:
        expected = answer.read().decode().split()[0]
    if hashlib.sha1(content).hexdigest() != expected:
        raise ValueError(f"{address}: not the content that its checksum is of")
    return content


def text(element, name):
    found = element.find(name)
    return None if found is None or found.text is None else found.text.strip()


class Descriptions:
    """Project descriptions with what they take from their parents."""

    def __init__(self):
        self.known = {}

    def get(self, group, artifact, version):
        key = (group, artifact, version)
        if key not in self.known:
            root = xml.fromstring(re.sub(rb'\sxmlns="[^"]*"', b"", fetch(*key, "pom"), count=1))
            properties = {"project.version": version, "project.groupId": group}
            managed = {}
            parent = root.find("parent")
            if parent is not None:
                above = self.get(*(text(parent, name) for name in ("groupId", "artifactId", "version")))
                properties = {**above[1], **properties, "project.parent.version": text(parent, "version")}
                managed = dict(above[2])
            for element in root.findall("properties/*"):
                properties[element.tag] = (element.text or "").strip()
            for element in root.findall("dependencyManagement/dependencies/dependency"):
                one = {name: self.filled(text(element, name), properties) for name in ("groupId", "artifactId", "version", "scope")}
                if one["scope"] == "import":
                    managed.update(self.get(one["groupId"], one["artifactId"], one["version"])[2])
                else:
                    managed[one["groupId"], one["artifactId"]] = one["version"]
            self.known[key] = (root, properties, managed)
        return self.known[key]

    @staticmethod
    def filled(value, properties):
        while value and "${" in value:
            name = re.search(r"\$\{([^}]*)\}", value).group(1)
            value = value.replace("${" + name + "}", properties[name])
        return value

    def needs(self, group, artifact, version):
        root, properties, managed = self.get(group, artifact, version)
        for element in root.findall("dependencies/dependency"):
            if text(element, "optional") == "true" or (text(element, "scope") or "compile") not in ("compile", "runtime"):
                continue
            one = [self.filled(text(element, name), properties) for name in ("groupId", "artifactId", "version")]
            one[2] = one[2] or managed[one[0], one[1]]
            excluded = {(text(e, "groupId"), text(e, "artifactId")) for e in element.findall("exclusions/exclusion")}
            yield tuple(one), excluded


def main():
    directory, wanted = pathlib.Path(sys.argv[1]), [tuple(name.split(":")) for name in sys.argv[2:]]
    descriptions, chosen, open_ = Descriptions(), {}, [(one, frozenset()) for one in wanted]
    # Nearest first, as Maven does; two logging backends would quarrel.
    while open_:
        (group, artifact, version), excluded = open_.pop(0)
        if (group, artifact) in chosen or (group, artifact) in excluded or (group, "*") in excluded:
            continue
        chosen[group, artifact] = version
        open_ += [(need, excluded | more) for need, more in descriptions.needs(group, artifact, version)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jars = {one: pool.submit(fetch, *one, "jar") for one in ((g, a, v) for (g, a), v in chosen.items())}
        for (_, artifact, version), jar in jars.items():
            (directory / f"{artifact}-{version}.jar").write_bytes(jar.result())


main()
