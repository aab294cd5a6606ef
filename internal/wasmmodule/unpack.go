package wasmmodule

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
)

// pluginFile is the module's name in the layer of an image that was made like a
// container's: https://github.com/solo-io/wasm/blob/master/spec/spec-compat.md.
const pluginFile = "plugin.wasm"

// maxBoxes bounds how often a download may be packed: a tar in a gzip is two.
const maxBoxes = 4

// tarOverhead is what an archive may unpack to beside its module.
const tarOverhead = 1 << 20

var (
	wasmMagic   = []byte("\x00asm")
	moduleMagic = []byte("\x00asm\x01\x00\x00\x00")
	gzipMagic   = []byte{0x1f, 0x8b}
	zstdMagic   = []byte{0x28, 0xb5, 0x2f, 0xfd}
	tarMagic    = []byte("ustar")
)

const tarMagicAt = 257

// verify says what is wrong with b as a WebAssembly module. Only the first eight
// bytes are looked at: compiling it tells the rest.
func verify(b []byte) error {
	switch {
	case bytes.HasPrefix(b, moduleMagic):
		return nil
	case bytes.HasPrefix(b, wasmMagic) && len(b) >= len(moduleMagic):
		return fmt.Errorf("a WebAssembly binary of version % x: only core modules (01 00 00 00) can be run, no components", b[len(wasmMagic):len(moduleMagic)])
	case len(b) == 0:
		return errors.New("it is empty")
	}
	return fmt.Errorf("it is no WebAssembly module: it begins with %q", b[:min(len(b), 16)])
}

// tooLarge is the error for what is more than max bytes, unpacked.
func tooLarge(what string, limit int64) error {
	return fmt.Errorf("%s is larger than %d bytes (ISTIO_WASM_MAX_BINARY_SIZE_BYTES)", what, limit)
}

// readAll reads at most limit bytes; more is an error.
func readAll(what string, r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case int64(len(b)) > limit:
		return nil, tooLarge(what, limit)
	}
	return b, nil
}

// unbox returns the module in a download: b itself, or what is in a gzip stream
// or is the first file of a tar archive, as istio-agent takes them.
func unbox(b []byte, limit int64) ([]byte, error) {
	for range maxBoxes {
		var err error
		switch {
		case bytes.HasPrefix(b, gzipMagic):
			b, err = gunzip(b, limit)
		case isTar(b):
			b, err = fromTar(bytes.NewReader(b), limit, func(string) bool { return true })
		default:
			return b, verify(b)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("it is packed more than %d times", maxBoxes)
}

func isTar(b []byte) bool {
	return len(b) > tarMagicAt+len(tarMagic) && bytes.Equal(b[tarMagicAt:tarMagicAt+len(tarMagic)], tarMagic)
}

func gunzip(b []byte, limit int64) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	return readAll("what the gzip stream holds", z, limit+tarOverhead)
}

// fromLayer finds plugin.wasm in a layer, a tar archive that may be compressed.
// It reads no further than that.
func fromLayer(r io.Reader, limit int64) ([]byte, error) {
	br := bufio.NewReader(r)
	head, err := br.Peek(len(zstdMagic))
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	var archive io.Reader = br
	switch {
	case bytes.HasPrefix(head, zstdMagic):
		return nil, errors.New("layer: zstd is not supported: compress the image's layers with gzip")
	case bytes.HasPrefix(head, gzipMagic):
		if archive, err = gzip.NewReader(br); err != nil {
			return nil, fmt.Errorf("layer: gzip: %w", err)
		}
	}
	b, err := fromTar(archive, limit, func(name string) bool { return path.Base(name) == pluginFile })
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return unbox(b, limit)
}

// fromTar returns the first regular file whose name is wanted. The archive may
// not be much larger than a module, up to there.
func fromTar(r io.Reader, limit int64, wanted func(name string) bool) ([]byte, error) {
	bounded := &io.LimitedReader{R: r, N: limit + tarOverhead}
	over := func(err error) error {
		if bounded.N <= 0 {
			return tooLarge("the archive", limit)
		}
		return fmt.Errorf("tar: %w", err)
	}
	t := tar.NewReader(bounded)
	for {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF) && bounded.N > 0:
			return nil, fmt.Errorf("no %s is in the archive", pluginFile)
		case err != nil:
			return nil, over(err)
		case h.Typeflag != tar.TypeReg || !wanted(h.Name):
			continue
		case h.Size > limit:
			return nil, tooLarge(path.Base(h.Name), limit)
		}
		b, err := io.ReadAll(io.LimitReader(t, limit)) // grows with what is there, whatever the header says
		if err != nil {
			return nil, over(err)
		}
		return b, nil
	}
}
