package wasmmodule

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

// credential is what a registry is told. Empty: nothing.
type credential struct {
	user, password string
	// refresh is an identity token, access a registry token.
	refresh, access string
}

// dockerAuth is an entry of a docker configuration.
type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// errSecret says nothing about the content: it is one.
var errSecret = errors.New("the image pull secret is no docker configuration: want a Secret of type kubernetes.io/dockerconfigjson")

// credentialFor finds what a docker configuration in JSON, which istiod took from
// the pull secret, has for a repository of a registry. A key may have a path, and
// is then for repositories below it; the longest one counts.
func credentialFor(secret, registry, repository string) (credential, error) {
	var cfg struct {
		Auths map[string]dockerAuth `json:"auths"`
	}
	if err := json.Unmarshal([]byte(secret), &cfg); err != nil {
		return credential{}, errSecret // the parser would quote what it read
	}
	if cfg.Auths == nil { // the older .dockercfg
		if err := json.Unmarshal([]byte(secret), &cfg.Auths); err != nil {
			return credential{}, errSecret // the parser would quote what it read
		}
	}
	best, found := dockerAuth{}, -1
	for key, a := range cfg.Auths {
		host, prefix := splitKey(key)
		if canonicalRegistry(host) != registry || prefix != "" && repository != prefix && !strings.HasPrefix(repository, prefix+"/") {
			continue
		}
		if len(prefix) > found {
			best, found = a, len(prefix)
		}
	}
	c := credential{user: best.Username, password: best.Password, refresh: best.IdentityToken, access: best.RegistryToken}
	if best.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(best.Auth))
		user, password, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return credential{}, errSecret
		}
		c.user, c.password = user, strings.Trim(password, "\x00")
	}
	return c, nil
}

// splitKey takes a registry's key apart: "https://index.docker.io/v1/" has no
// path, "ghcr.io/team" has.
func splitKey(key string) (host, prefix string) {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, prefix, _ = strings.Cut(key, "/")
	prefix = strings.Trim(prefix, "/")
	if prefix == "v1" || prefix == "v2" {
		prefix = ""
	}
	return host, prefix
}
