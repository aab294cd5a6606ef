package wasmmodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/fairlead-mesh/fairlead/filters"
)

// Media types of manifests; Docker's have the same form as OCI's.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Media types of layers that are modules, without an archive around them.
var moduleLayers = []string{
	"application/vnd.module.wasm.content.layer.v1+wasm", // https://github.com/solo-io/wasm/blob/master/spec/spec.md
	"application/vnd.wasm.content.layer.v1+wasm",
	"application/wasm", // https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/
}

// Media types of layers that are archives.
var archiveLayers = []string{dockerLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayer}

// maxManifest bounds a manifest.
const maxManifest = 1 << 20

// manifest is an image's, or an index of images.
type manifest struct {
	MediaType string               `json:"mediaType"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
}

// pull gets the module in an image.
func (s *Store) pull(ctx context.Context, ref *filters.ModuleRef, name string) (sum string, err error) {
	img, err := parseImage(name)
	if err != nil {
		return "", final(resultConfig, err)
	}
	want := digestOf(ref)
	if pinned := strings.TrimPrefix(img.digest, sha256Pre); pinned != "" && want != "" && pinned != want {
		return "", final(resultConfig, fmt.Errorf("the URL names the digest %s, sha256 is %s", pinned, want))
	}
	repo, err := s.repository(img, ref.PullSecret)
	if err != nil {
		return "", err
	}
	m, digest, err := s.image(ctx, repo, img, want)
	if err != nil {
		return "", err
	}
	// The same image under another tag, or of another version of the resource:
	// the registry has just let us see its manifest.
	key := sumOf([]byte("image " + img.name() + "@" + digest))
	if sum := s.cache.known(key); sum != "" && s.cache.pin(sum) {
		return sum, nil
	}
	b, err := s.fromImage(ctx, repo, m)
	if err != nil {
		return "", err
	}
	if sum, err = s.cache.put(b); err == nil {
		s.cache.remember(key, sum)
	}
	return sum, err
}

// repository returns how to speak with an image's registry.
func (s *Store) repository(img *image, secret string) (*remote.Repository, error) {
	r := registry.Reference{Registry: img.registry, Repository: img.repository, Reference: img.reference()}
	if err := r.Validate(); err != nil {
		return nil, final(resultConfig, err)
	}
	cred := auth.EmptyCredential
	if secret != "" {
		c, err := credentialFor(secret, img.registry, img.repository)
		if err != nil {
			return nil, final(resultConfig, err)
		}
		cred = auth.Credential{Username: c.user, Password: c.password, RefreshToken: c.refresh, AccessToken: c.access}
	}
	t := s.web.trust(img.registry, false)
	client := &auth.Client{
		Client: s.web.client(r.Host(), false), Cache: auth.NewCache(), ClientID: "fairlead", Header: http.Header{"User-Agent": {"fairlead"}},
		Credential: func(_ context.Context, host string) (auth.Credential, error) {
			if host != r.Host() { // a redirect leads nobody's password away
				return auth.EmptyCredential, nil
			}
			return cred, nil
		},
	}
	if t.loopback {
		client.BlockedRealmPrefixes = []netip.Prefix{}
	}
	return &remote.Repository{Reference: r, Client: client, MaxMetadataBytes: maxManifest}, nil
}

// plain makes a repository speak plain HTTP.
func (s *Store) plain(repo *remote.Repository) {
	repo.PlainHTTP = true
	repo.Client.(*auth.Client).Client = s.web.client(repo.Reference.Host(), true) //nolint:errcheck,forcetypeassert // repository made it
}

// image gets the manifest of an image, and its digest. want, if not "", is what
// that of the image, or of the index it is in, must be.
func (s *Store) image(ctx context.Context, repo *remote.Repository, img *image, want string) (*manifest, string, error) {
	m, digest, err := s.manifest(ctx, repo, img.reference())
	if err != nil && isPlainServer(err) {
		switch t := s.web.trust(img.registry, false); {
		case t.insecure || t.loopback:
			s.plain(repo)
			m, digest, err = s.manifest(ctx, repo, img.reference())
		default:
			err = fmt.Errorf("the registry speaks plain HTTP: name it in WASM_INSECURE_REGISTRIES if that is all right: %w", err)
		}
	}
	if err != nil {
		return nil, "", err
	}
	if img.digest != "" && digest != img.digest {
		return nil, "", final(resultChecksum, fmt.Errorf("the digest of the manifest is %s, not %s", digest, img.digest))
	}
	matched := want == "" || digest == sha256Pre+want
	if len(m.Manifests) > 0 {
		of := pick(m.Manifests)
		index := digest
		if m, digest, err = s.manifest(ctx, repo, of.Digest.String()); err != nil {
			return nil, "", err
		}
		if digest != of.Digest.String() {
			return nil, "", final(resultChecksum, fmt.Errorf("the digest of the manifest is %s, not %s as its index %s says", digest, of.Digest, index))
		}
		matched = matched || digest == sha256Pre+want
	}
	if !matched {
		return nil, "", final(resultChecksum, fmt.Errorf("the digest of the image is %s, not sha256:%s", digest, want))
	}
	return m, digest, nil
}

// isPlainServer tells whether a server answered TLS with plain HTTP.
func isPlainServer(err error) bool {
	return strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// manifest gets one manifest by a tag or digest. Its bytes have the digest that
// is returned.
func (s *Store) manifest(ctx context.Context, repo *remote.Repository, reference string) (*manifest, string, error) {
	desc, rc, err := repo.Manifests().FetchReference(ctx, reference)
	if err != nil {
		return nil, "", registryFault(resultManifest, err)
	}
	defer func() { _ = rc.Close() }()
	if desc.Size > maxManifest {
		return nil, "", final(resultManifest, fmt.Errorf("the manifest takes %d bytes", desc.Size))
	}
	b, err := content.ReadAll(rc, desc)
	if err != nil {
		return nil, "", registryFault(resultManifest, fmt.Errorf("manifest: %w", err))
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, "", final(resultManifest, fmt.Errorf("manifest: %w", err))
	}
	if m.MediaType == "" {
		m.MediaType = desc.MediaType
	}
	return &m, desc.Digest.String(), nil
}

// pick chooses from an index: an image for WebAssembly, else one for Linux on a
// usual processor, which images of modules claim to be.
func pick(ms []ocispec.Descriptor) ocispec.Descriptor {
	rank := func(d *ocispec.Descriptor) int {
		switch p := d.Platform; {
		case p == nil:
			return 2
		case p.Architecture == "wasm" || strings.HasPrefix(p.OS, "wasi"):
			return 4
		case p.OS == "linux" && p.Architecture == "amd64":
			return 3
		case p.OS == "linux":
			return 1
		}
		return 0
	}
	best := ms[0]
	for i := range ms {
		if rank(&ms[i]) > rank(&best) {
			best = ms[i]
		}
	}
	return best
}

// fromImage gets the module of an image: a layer that is one, or plugin.wasm in
// the last layer if the image was made like a container's.
func (s *Store) fromImage(ctx context.Context, repo *remote.Repository, m *manifest) ([]byte, error) {
	switch {
	case !slices.Contains([]string{"", ocispec.MediaTypeImageManifest, dockerManifest}, m.MediaType):
		return nil, final(resultManifest, fmt.Errorf("a manifest of type %q is none of an image", m.MediaType))
	case len(m.Layers) == 0:
		return nil, final(resultManifest, errors.New("the image has no layer"))
	}
	unpack := fromLayer
	layer := m.Layers[len(m.Layers)-1]
	if i := slices.IndexFunc(m.Layers, func(d ocispec.Descriptor) bool { return slices.Contains(moduleLayers, d.MediaType) }); i >= 0 {
		layer = m.Layers[i]
		unpack = func(r io.Reader, limit int64) ([]byte, error) {
			b, err := readAll("the layer", r, limit)
			if err != nil {
				return nil, err
			}
			return unbox(b, limit)
		}
	} else if !slices.Contains(archiveLayers, layer.MediaType) {
		return nil, final(resultInvalid, fmt.Errorf("no layer is a WebAssembly module, and the last one is %q, no tar archive", layer.MediaType))
	}
	limit := s.opt.MaxModule
	if layer.Size > limit+tarOverhead {
		return nil, final(resultInvalid, tooLarge("the layer", limit))
	}
	rc, err := repo.Blobs().Fetch(ctx, layer)
	if err != nil {
		return nil, registryFault(resultDownload, err)
	}
	defer func() { _ = rc.Close() }()
	v := content.NewVerifyReader(rc, layer)
	b, unpackErr := unpack(v, limit)
	// The digest is that of all bytes; without it, nothing is known of any.
	if _, err := io.Copy(io.Discard, v); err != nil {
		return nil, registryFault(resultDownload, fmt.Errorf("layer: %w", err))
	}
	if err := v.Verify(); err != nil {
		return nil, final(resultChecksum, fmt.Errorf("layer: %w", err))
	}
	if unpackErr != nil {
		return nil, final(resultInvalid, unpackErr)
	}
	return b, nil
}

// registryFault is an error of the registry's client, without URLs in it.
func registryFault(result string, err error) error {
	resp, answered := errors.AsType[*errcode.ErrorResponse](err)
	switch {
	case answered:
		f := status(resp.StatusCode, result)
		if len(resp.Errors) > 0 {
			f.err = fmt.Errorf("%w: %s", f.err, resp.Errors[0].Code)
		}
		if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
			f.err = fmt.Errorf("%w (is imagePullSecret right for this registry?)", f.err)
		}
		return f
	case errors.Is(err, errdef.ErrNotFound):
		return final(result, errors.New("the registry has no such image"))
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return final(result, errors.New("the registry wants a password: name it in imagePullSecret"))
	}
	return &fault{result: result, err: plainly(err)}
}
