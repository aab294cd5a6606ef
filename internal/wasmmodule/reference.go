package wasmmodule

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

const (
	dockerHub = "docker.io"
	sha256Pre = "sha256:"
)

// image is the reference of an image.
type image struct {
	registry, repository string
	tag                  string // "" if there is a digest
	digest               string // "sha256:…", or ""
}

func (i *image) reference() string {
	if i.digest != "" {
		return i.digest
	}
	return i.tag
}

func (i *image) name() string { return i.registry + "/" + i.repository }

// parseImage reads what follows oci://, by Docker's rules: without a registry it
// is Docker Hub's, without a tag it is "latest", and a digest wins over a tag.
func parseImage(s string) (*image, error) {
	name, digest, pinned := strings.Cut(s, "@")
	i := &image{digest: digest}
	if hex, ok := strings.CutPrefix(digest, sha256Pre); pinned && (!ok || !isSHA256(hex)) {
		return nil, fmt.Errorf("%q is no digest: want sha256: and 64 hexadecimal digits", digest)
	}
	first, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		rest = ""
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		first, rest = dockerHub, name
	}
	i.registry = canonicalRegistry(first)
	repo, tag, tagged := cutLast(rest, ':')
	i.repository = repo
	switch {
	case pinned:
	case !tagged:
		i.tag = "latest"
	default:
		i.tag = tag
	}
	if i.registry == dockerHub && !strings.Contains(repo, "/") {
		i.repository = "library/" + repo
	}
	if repo == "" || tagged && tag == "" {
		return nil, errors.New("want oci://registry/repository:tag, or @sha256:… for the tag")
	}
	return i, nil
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	if k := strings.LastIndexByte(s, sep); k >= 0 {
		return s[:k], s[k+1:], true
	}
	return s, "", false
}

func isSHA256(s string) bool {
	if len(s) != 64 {
		return false
	}
	for k := range len(s) {
		if c := s[k]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// canonicalRegistry gives Docker Hub one name.
func canonicalRegistry(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com":
		return dockerHub
	}
	return host
}

// latest tells whether an image's tag is expected to move: istio-agent pulls
// those again with each version of the resource, unless told otherwise.
func latest(rawURL string) bool {
	name, ok := strings.CutPrefix(rawURL, "oci://")
	return ok && strings.HasSuffix(name, ":latest")
}

// shown is a URL as it may be logged: without what may be a secret in it.
func shown(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "(a malformed URL)"
	}
	if u.User != nil {
		u.User = url.User("…")
	}
	if u.RawQuery != "" {
		u.RawQuery = "…"
	}
	u.Fragment, u.RawFragment = "", ""
	s, err := url.PathUnescape(u.String())
	if err != nil {
		return u.String()
	}
	return s
}

// isLoopback tells whether host, without a port, names this machine itself.
func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
