package rego

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

const (
	maxJSONDepth = 1000
	maxParts     = 1000
)

var errTooLarge = errors.New("request body exceeds max_request_bytes")

// readBody pulls up to limit bytes of b. The body that upstream will read is
// returned with what was pulled at its front. truncated reports that more than
// limit bytes follow.
func readBody(b message.Body, limit int) (data []byte, rest message.Body, truncated bool, err error) {
	if b == message.NoBody {
		return nil, b, false, nil
	}
	var buf []byte
	for {
		chunk, last, err := b.Next()
		if err != nil {
			return nil, b, false, err
		}
		buf = append(buf, chunk...)
		if len(buf) > limit {
			return buf[:limit], &replayBody{Body: b, front: buf, lastSeen: last}, true, nil
		}
		if last {
			return buf, &replayBody{Body: b, front: buf, lastSeen: true}, false, nil
		}
	}
}

// replayBody serves front and then the rest of Body.
type replayBody struct {
	message.Body
	front    []byte
	lastSeen bool // Body has returned last
}

func (r *replayBody) Next() ([]byte, bool, error) {
	if p := r.front; len(p) > 0 {
		r.front = nil
		return p, r.lastSeen, nil
	}
	if r.lastSeen {
		return nil, true, nil
	}
	return r.Body.Next()
}

func (r *replayBody) Ready() (int, bool) {
	if len(r.front) > 0 || r.lastSeen {
		return len(r.front), r.lastSeen
	}
	return r.Body.Ready()
}

func (r *replayBody) Close() {
	r.front = nil
	r.Body.Close()
}

// parseBody makes parsed_body as opa-envoy-plugin does: by content-type JSON,
// form, multipart, or gRPC by descriptors; null otherwise, and null if the body was cut.
func (f *filter) parseBody(h *message.Header, b requestBody) (*ast.Term, bool, error) {
	null := ast.InternedNullTerm
	ct, ok := h.Joined("content-type")
	if !ok || len(b.bytes) == 0 {
		return null, b.truncated, nil
	}
	lower := strings.ToLower(ct)
	truncated := b.truncated
	if v, ok := h.Lookup("content-length"); ok && !truncated {
		cl, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return nil, false, fmt.Errorf("content-length: %w", err)
		}
		truncated = cl > int64(len(b.bytes))
	}
	var v ast.Value
	var err error
	switch {
	case strings.Contains(lower, "application/grpc") && f.methods != nil:
		v, truncated, err := f.methods.parseGRPC(h, b, f.cfg.maxBody)
		if err != nil {
			return nil, false, fmt.Errorf("parsed_body: %w", err)
		}
		return v, truncated, nil
	case strings.Contains(lower, "application/json"):
		if truncated {
			return null, true, nil
		}
		v, err = parseJSON(b.bytes)
	case strings.Contains(lower, "application/x-www-form-urlencoded"):
		if truncated {
			return null, true, nil
		}
		var values url.Values
		if values, err = url.ParseQuery(string(b.bytes)); err == nil {
			return valuesTerm(values), false, nil
		}
	case strings.Contains(lower, "multipart/form-data"):
		if truncated {
			return null, true, nil
		}
		v, err = parseMultipart(ct, b.bytes)
	default:
		return null, truncated, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("parsed_body: %w", err)
	}
	return ast.NewTerm(v), false, nil
}

// parseJSON parses exactly one JSON value. Unlike the plugin it refuses
// objects with a key twice: parsers disagree on which one counts.
func parseJSON(b []byte) (ast.Value, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := jsonValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON value")
	}
	return v, nil
}

func jsonValue(d *json.Decoder, depth int) (ast.Value, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("JSON nested deeper than %d", maxJSONDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			return jsonObject(d, depth)
		}
		var items []*ast.Term
		for d.More() {
			v, err := jsonValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			items = append(items, ast.NewTerm(v))
		}
		if _, err := d.Token(); err != nil {
			return nil, err
		}
		return ast.NewArray(items...), nil
	case string:
		return ast.String(t), nil
	case json.Number:
		if !boundedNumber(t.String()) {
			return nil, errors.New("JSON number out of bounds")
		}
		return ast.Number(t), nil
	case bool:
		return ast.Boolean(t), nil
	}
	return ast.Null{}, nil
}

func jsonObject(d *json.Decoder, depth int) (ast.Value, error) {
	var items [][2]*ast.Term
	seen := map[string]bool{}
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, ok := k.(string)
		if !ok {
			return nil, fmt.Errorf("JSON object key %v is not a string", k)
		}
		if seen[key] {
			return nil, errors.New("JSON object has a key twice")
		}
		seen[key] = true
		v, err := jsonValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		items = append(items, ast.Item(ast.StringTerm(key), ast.NewTerm(v)))
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	return ast.NewObject(items...), nil
}

// parseMultipart returns name → array of values; parts of type JSON are parsed.
func parseMultipart(contentType string, b []byte) (ast.Value, error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, err
	}
	if params["boundary"] == "" {
		return nil, errors.New("multipart without boundary")
	}
	r := multipart.NewReader(bytes.NewReader(b), params["boundary"])
	var names []string
	values := map[string][]*ast.Term{}
	for n := 0; ; n++ {
		p, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if n >= maxParts {
			return nil, fmt.Errorf("more than %d parts", maxParts)
		}
		name := validUTF8(p.FormName())
		if name == "" {
			continue
		}
		data, err := io.ReadAll(p)
		if err != nil {
			return nil, err
		}
		var v ast.Value = ast.String(validUTF8(string(data)))
		if strings.Contains(strings.ToLower(p.Header.Get("Content-Type")), "application/json") {
			if v, err = parseJSON(data); err != nil {
				return nil, err
			}
		}
		if values[name] == nil {
			names = append(names, name)
		}
		values[name] = append(values[name], ast.NewTerm(v))
	}
	items := make([][2]*ast.Term, 0, len(names))
	for _, name := range names {
		items = append(items, ast.Item(ast.StringTerm(name), ast.ArrayTerm(values[name]...)))
	}
	return ast.NewObject(items...), nil
}
