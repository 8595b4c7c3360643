#!/bin/sh
# Prints what a system or image holds as SPDX 2.3 (tag-value): every Debian package, and the wheels that a file names.
#
#   deploy/docker/list_packages.sh [WHEELS]     WHEELS: lines of name==version
#
# The images carry its output as /usr/local/share/millrace/sbom.spdx.
set -eu

created=$(date -u +%Y-%m-%dT%H:%M:%SZ)
cat <<HEADER
SPDXVersion: SPDX-2.3
DataLicense: CC0-1.0
SPDXID: SPDXRef-DOCUMENT
DocumentName: millrace-image
DocumentNamespace: https://millrace.invalid/spdx/$(cat /proc/sys/kernel/random/uuid)
Creator: Tool: millrace-list_packages
Created: $created
HEADER

# Lines of kind, name, version and architecture.
{
  dpkg-query --show --showformat '${db:Status-Status} ${Package} ${Version} ${Architecture}\n' | sed -n 's/^installed /deb /p'
  [ $# -eq 0 ] || sed -n 's/^\([^=]*\)==\(.*\)$/pypi \1 \2 none/p' "$1"
} | awk '{
  id = $2 "-" $3
  gsub(/[^A-Za-z0-9.-]/, "-", id)
  purl = $1 == "deb" ? "pkg:deb/debian/" $2 "@" $3 "?arch=" $4 "&distro=debian-12" : "pkg:pypi/" $2 "@" $3
  printf "\nPackageName: %s\nSPDXID: SPDXRef-%s\nPackageVersion: %s\n", $2, id, $3
  print "PackageDownloadLocation: NOASSERTION\nFilesAnalyzed: false"
  printf "ExternalRef: PACKAGE-MANAGER purl %s\nRelationship: SPDXRef-DOCUMENT DESCRIBES SPDXRef-%s\n", purl, id
}'
