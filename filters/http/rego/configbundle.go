package rego

import (
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/keys"

	"github.com/fairlead-mesh/fairlead/filters/http/rego/regopb"
)

const (
	defaultBundleBytes   = 16 << 20
	maxBundleBytes       = 256 << 20
	defaultUnpackedBytes = 64 << 20
	maxUnpackedBytes     = 1 << 30

	defaultDownloadTimeout = 10 * time.Second
	defaultMinDelay        = time.Minute
	defaultMaxDelay        = 2 * time.Minute
	leastDelay             = 100 * time.Millisecond

	// maxSecretBytes bounds files that hold tokens and keys.
	maxSecretBytes = 1 << 20
)

// bundleConfig is a validated Bundle. Its fields are exported for JSON, which
// makes keys of shared state.
type bundleConfig struct {
	Name                 string
	HTTP                 *httpBundle // nil: Filename
	Filename             string
	Verify               *verification // nil: unsigned bundles only
	MaxBytes, MaxUnpacks int64
	Version              regopb.Policy_RegoVersion
}

type httpBundle struct {
	Cluster, Path, Authority, Scheme string
	Credentials                      *credentials
	Polling                          polling `json:"-"`
}

// polling may change without a new download.
type polling struct{ timeout, minDelay, maxDelay time.Duration }

// credentials make an authorization header; nil makes none.
type credentials struct{ Scheme, Token, TokenPath string }

type verification struct {
	Keys         []keyConfig
	KeyID, Scope string
	Exclude      []string
}

type keyConfig struct{ ID, Algorithm, Scope, Text, Filename string }

// sum identifies what c describes.
func (c *bundleConfig) sum() [sha256.Size]byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(fmt.Sprintf("rego: %v", err)) // programmer error: plain data
	}
	return sha256.Sum256(b)
}

func decodeBundle(m *regopb.Bundle, v regopb.Policy_RegoVersion) (*bundleConfig, error) {
	c := &bundleConfig{Name: m.GetName(), Version: v, MaxBytes: defaultBundleBytes, MaxUnpacks: defaultUnpackedBytes}
	switch {
	case m.GetHttp() != nil:
		h, err := decodeHTTPBundle(m.GetHttp())
		if err != nil {
			return nil, fmt.Errorf("http.%w", err)
		}
		c.HTTP = h
		if c.Name == "" {
			c.Name, _, _ = strings.Cut(h.Path, "?")
		}
	case m.GetFilename() != "":
		c.Filename = m.GetFilename()
		if c.Name == "" {
			c.Name = c.Filename
		}
	default:
		return nil, errors.New("http or filename required")
	}
	if n := m.GetMaxBytes(); n > maxBundleBytes {
		return nil, fmt.Errorf("max_bytes: %d exceeds %d", n, maxBundleBytes)
	} else if n > 0 {
		c.MaxBytes = int64(n)
	}
	if n := m.GetMaxUnpackedBytes(); n > maxUnpackedBytes {
		return nil, fmt.Errorf("max_unpacked_bytes: %d exceeds %d", n, maxUnpackedBytes)
	} else if n > 0 {
		c.MaxUnpacks = int64(n)
	}
	if m.GetVerification() != nil {
		var err error
		if c.Verify, err = decodeVerification(m.GetVerification()); err != nil {
			return nil, fmt.Errorf("verification.%w", err)
		}
	}
	return c, nil
}

func decodeHTTPBundle(m *regopb.HTTPBundle) (*httpBundle, error) {
	h := &httpBundle{Cluster: m.GetCluster(), Path: m.GetPath(), Authority: m.GetAuthority(), Scheme: scheme(m.GetHttps())}
	if h.Cluster == "" {
		return nil, errors.New("cluster: required")
	}
	if h.Authority == "" {
		h.Authority = h.Cluster
	}
	if err := checkTarget(h.Path, h.Authority); err != nil {
		return nil, err
	}
	var err error
	if h.Credentials, err = decodeCredentials(m.GetCredentials()); err != nil {
		return nil, fmt.Errorf("credentials.%w", err)
	}
	p := &h.Polling
	if p.timeout, err = duration("timeout", m.GetTimeout(), defaultDownloadTimeout, time.Millisecond, 5*time.Minute); err != nil {
		return nil, err
	}
	if p.minDelay, err = duration("min_delay", m.GetMinDelay(), defaultMinDelay, leastDelay, 24*time.Hour); err != nil {
		return nil, err
	}
	if p.maxDelay, err = duration("max_delay", m.GetMaxDelay(), max(defaultMaxDelay, p.minDelay), leastDelay, 24*time.Hour); err != nil {
		return nil, err
	}
	if m.GetMinDelay() == nil {
		p.minDelay = min(p.minDelay, p.maxDelay)
	}
	if p.minDelay > p.maxDelay {
		return nil, fmt.Errorf("min_delay: %v exceeds max_delay %v", p.minDelay, p.maxDelay)
	}
	return h, nil
}

func scheme(https bool) string {
	if https {
		return "https"
	}
	return "http"
}

// checkTarget refuses what would break the request line.
func checkTarget(path, authority string) error {
	if !strings.HasPrefix(path, "/") || !visible(path) {
		return fmt.Errorf("path: %q: want a path that begins with a slash, without spaces", path)
	}
	if !visible(authority) {
		return fmt.Errorf("authority: %q is no host", authority)
	}
	return nil
}

func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func decodeCredentials(m *regopb.Credentials) (*credentials, error) {
	if m == nil {
		return nil, nil
	}
	c := &credentials{Scheme: m.GetScheme(), Token: m.GetToken(), TokenPath: m.GetTokenPath()}
	if c.Scheme == "" {
		c.Scheme = "Bearer"
	}
	switch {
	case c.Token == "" && c.TokenPath == "":
		return nil, errors.New("token or token_path required")
	case !visible(c.Scheme):
		return nil, errors.New("scheme: holds spaces or other characters")
	case !headerText(c.Token):
		return nil, errors.New("token: holds characters that a header can't")
	}
	return c, nil
}

func headerText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f })
}

// header is the value of authorization; ok is false if there is none.
func (c *credentials) header() (value string, ok bool, err error) {
	if c == nil {
		return "", false, nil
	}
	token := c.Token
	if c.TokenPath != "" {
		b, err := readBounded(c.TokenPath, maxSecretBytes)
		if err != nil {
			return "", false, fmt.Errorf("credentials.token_path: %w", err)
		}
		if token = strings.TrimSpace(string(b)); token == "" || !headerText(token) {
			return "", false, fmt.Errorf("credentials.token_path: %s holds no token", c.TokenPath)
		}
	}
	return c.Scheme + " " + token, true, nil
}

func decodeVerification(m *regopb.Verification) (*verification, error) {
	v := &verification{KeyID: m.GetKeyId(), Scope: m.GetScope(), Exclude: m.GetExcludeFiles()}
	ids := make([]string, 0, len(m.GetKeys()))
	for i, k := range m.GetKeys() {
		c, err := decodeKey(k)
		if err != nil {
			return nil, fmt.Errorf("keys[%d].%w", i, err)
		}
		if slices.Contains(ids, c.ID) {
			return nil, fmt.Errorf("keys[%d].id: %q is there twice", i, c.ID)
		}
		ids = append(ids, c.ID)
		v.Keys = append(v.Keys, c)
	}
	if len(v.Keys) == 0 {
		return nil, errors.New("keys: at least one required")
	}
	if v.KeyID != "" && !slices.Contains(ids, v.KeyID) {
		return nil, fmt.Errorf("key_id: %q is none of keys", v.KeyID)
	}
	for i, e := range v.Exclude {
		if _, err := path.Match(e, ""); err != nil {
			return nil, fmt.Errorf("exclude_files[%d]: %q: %w", i, e, err)
		}
	}
	return v, nil
}

func decodeKey(m *regopb.Key) (keyConfig, error) {
	k := keyConfig{ID: m.GetId(), Algorithm: m.GetAlgorithm(), Scope: m.GetScope(), Filename: m.GetFilename()}
	if k.ID == "" {
		return k, errors.New("id: required")
	}
	if k.Algorithm == "" {
		k.Algorithm = "RS256"
	}
	if !keys.IsSupportedAlgorithm(k.Algorithm) {
		return k, fmt.Errorf("algorithm: %q is not known", k.Algorithm)
	}
	hmac := strings.HasPrefix(k.Algorithm, "HS")
	switch {
	case k.Filename != "":
		return k, nil
	case hmac && m.GetSecret() == "":
		return k, fmt.Errorf("secret or filename required: %s has no public key", k.Algorithm)
	case hmac:
		k.Text = m.GetSecret()
		return k, nil
	case m.GetPem() == "":
		return k, fmt.Errorf("pem or filename required: the public key of %s", k.Algorithm)
	}
	k.Text = m.GetPem()
	return k, checkPEM(k.Text)
}

func checkPEM(text string) error {
	b, _ := pem.Decode([]byte(text))
	if b == nil {
		return errors.New("pem: no PEM block found")
	}
	if b.Type != "PUBLIC KEY" && b.Type != "RSA PUBLIC KEY" && b.Type != "CERTIFICATE" {
		return fmt.Errorf("pem: a block of type %q: want PUBLIC KEY or CERTIFICATE", b.Type)
	}
	return nil
}

// config reads the keys; nil means that signed bundles can't be verified.
func (v *verification) config() (*bundle.VerificationConfig, error) {
	if v == nil {
		return nil, nil
	}
	ks := make(map[string]*bundle.KeyConfig, len(v.Keys))
	for _, k := range v.Keys {
		text := k.Text
		if k.Filename != "" {
			b, err := readBounded(k.Filename, maxSecretBytes)
			if err != nil {
				return nil, fmt.Errorf("verification key %s: %w", k.ID, err)
			}
			text = string(b)
		}
		switch {
		case text == "":
			// An empty secret would let anybody sign.
			return nil, fmt.Errorf("verification key %s: %s is empty", k.ID, k.Filename)
		case !strings.HasPrefix(k.Algorithm, "HS"):
			if err := checkPEM(text); err != nil {
				return nil, fmt.Errorf("verification key %s: %w", k.ID, err)
			}
		}
		ks[k.ID] = &bundle.KeyConfig{Key: text, Algorithm: k.Algorithm, Scope: k.Scope}
	}
	return bundle.NewVerificationConfig(ks, v.KeyID, v.Scope, v.Exclude), nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(name string, limit int64) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes: the limit is %d", name, st.Size(), limit)
	}
	return os.ReadFile(name)
}
