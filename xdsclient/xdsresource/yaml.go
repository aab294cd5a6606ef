package xdsresource

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Problem is one thing that is wrong with a document.
type Problem struct {
	// Path is the field, "static_resources.listeners[0].name"; Line its line,
	// 0 if unknown.
	Path    string
	Line    int
	Message string
}

// String formats p as "line 3: path: message".
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// ParseError lists everything that is wrong with a document, in its order.
type ParseError struct{ Problems []Problem }

// Error lists the problems, one a line.
func (e *ParseError) Error() string {
	lines := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// Unmarshal parses YAML or JSON (proto3 JSON, with field names in either form)
// into m. In contrast to protojson it reports all unknown fields and type
// errors at once, as a *ParseError, and proposes names. An extension whose
// "@type" is not linked in becomes a TypedStruct, so that configuration of
// native filters needs no proto.
func Unmarshal(doc []byte, m proto.Message) error {
	d, err := ParseDocument(doc)
	if err != nil {
		return err
	}
	return d.Into(m)
}

// Document is a parsed YAML or JSON document that remembers its lines. It is
// read-only.
type Document struct{ root *node }

// ParseDocument parses doc.
func ParseDocument(doc []byte) (*Document, error) {
	root, err := parseTree(doc)
	if err != nil {
		return nil, &ParseError{[]Problem{{Message: err.Error()}}}
	}
	return &Document{root}, nil
}

// Into converts the document into m; see Unmarshal.
func (d *Document) Into(m proto.Message) error { return d.into(d.root, m, "") }

func (d *Document) into(n *node, m proto.Message, path string) error {
	c := checker{}
	v := c.message(n, m.ProtoReflect().Descriptor(), path)
	if len(c.problems) > 0 {
		return &ParseError{c.problems}
	}
	j, err := json.Marshal(v)
	if err == nil {
		err = protojson.Unmarshal(j, m)
	}
	if err != nil {
		return &ParseError{[]Problem{{path, n.line, strings.TrimPrefix(err.Error(), "proto: ")}}}
	}
	return nil
}

// Line returns the line of the field at path, or of the nearest part of the
// path that exists.
func (d *Document) Line(path string) int {
	n, line := d.root, d.root.line
	for path != "" && n != nil {
		var key string
		if path[0] == '[' {
			end := strings.IndexByte(path, ']')
			if end < 0 {
				break
			}
			key, path = path[1:end], path[end+1:]
			if i, err := strconv.Atoi(key); err == nil {
				if n.kind != listNode || i < 0 || i >= len(n.values) {
					break
				}
				n = n.values[i]
			} else if k, err := strconv.Unquote(key); err == nil {
				n = n.get(k)
			}
		} else {
			path = strings.TrimPrefix(path, ".")
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			key, path = path[:end], path[end:]
			n = n.field(key)
		}
		if n != nil && n.line > 0 {
			line = n.line
		}
	}
	return line
}

// Problems lists what err says, with lines of d. Paths in err are relative to
// path.
func (d *Document) Problems(path string, err error) []Problem {
	var pe *ParseError
	var fe *FieldError
	switch joined, isJoin := err.(interface{ Unwrap() []error }); {
	case err == nil:
		return nil
	case errors.As(err, &pe):
		return pe.Problems
	case isJoin:
		var out []Problem
		for _, e := range joined.Unwrap() {
			out = append(out, d.Problems(path, e)...)
		}
		return out
	case errors.As(err, &fe):
		at := fe.Path
		if path != "" && at != "" {
			at = join(path, at)
		} else if at == "" {
			at = path
		}
		return []Problem{{at, d.Line(at), fe.Err.Error()}}
	}
	return []Problem{{path, d.Line(path), err.Error()}}
}

// FromYAML decodes one resource of the given type from YAML or JSON. The error
// is a *ParseError.
func (d *Decoder) FromYAML(typeURL string, doc []byte) (any, error) {
	m := newMessage(typeURL)
	if m == nil {
		return nil, fmt.Errorf("resource type %q is not supported", typeURL)
	}
	parsed, err := ParseDocument(doc)
	if err != nil {
		return nil, err
	}
	if err := parsed.Into(m); err != nil {
		return nil, err
	}
	v, err := d.Message(m)
	if err != nil {
		return nil, &ParseError{parsed.Problems("", err)}
	}
	return v, nil
}

// RawResource is one resource of a file.
type RawResource struct {
	TypeURL, Name string
	// Path is the place in the file.
	Path string
	// Message is a message of type TypeURL; it can be passed to
	// Decoder.Message, or be serialized.
	Message proto.Message
}

// Resources reads resources from a document that is a list of resources, or
// has one under "resources" (a DiscoveryResponse, as in files that
// path_config_source names). Each resource has an "@type" of a type that
// Decoder knows; a name must be unique within its type.
func (d *Document) Resources() ([]RawResource, error) {
	list, path := d.root, ""
	if list.kind == mapNode {
		path = "resources"
		if list = d.root.get("resources"); list == nil {
			return nil, &ParseError{[]Problem{{Path: path, Line: d.root.line, Message: "is missing"}}}
		}
	}
	if list.kind != listNode {
		return nil, &ParseError{[]Problem{{Path: path, Line: list.line, Message: "want a list of resources"}}}
	}
	var out []RawResource
	var problems []Problem
	seen := map[[2]string]bool{}
	for i, n := range list.values {
		at := path + "[" + strconv.Itoa(i) + "]"
		r, err := d.resource(n, at)
		if err != nil {
			problems = append(problems, d.Problems(at, err)...)
			continue
		}
		key := [2]string{r.TypeURL, r.Name}
		if seen[key] {
			problems = append(problems, Problem{at, n.line, fmt.Sprintf("%q is there twice", r.Name)})
		}
		seen[key] = true
		out = append(out, *r)
	}
	if len(problems) > 0 {
		return nil, &ParseError{problems}
	}
	return out, nil
}

func (d *Document) resource(n *node, at string) (*RawResource, error) {
	t := n.get("@type")
	if t == nil {
		return nil, errors.New(`"@type" is missing`)
	}
	url, _ := t.scalar.(string)
	m := newMessage(url)
	if m == nil {
		return nil, fmt.Errorf("resource type %q is not supported", url)
	}
	if err := d.into(n.without("@type"), m, at); err != nil {
		return nil, err
	}
	return &RawResource{TypeURL: url, Name: ResourceName(m), Path: at, Message: m}, nil
}

// ResourceName returns the name that xDS knows a resource message by.
func ResourceName(m proto.Message) string {
	r := m.ProtoReflect()
	for _, f := range []protoreflect.Name{"name", "cluster_name"} {
		if fd := r.Descriptor().Fields().ByName(f); fd != nil && fd.Kind() == protoreflect.StringKind {
			return r.Get(fd).String()
		}
	}
	return ""
}

// Text is the string in a field of the document itself, "" if there is none.
func (d *Document) Text(field string) string {
	if d.root.kind != mapNode {
		return ""
	}
	n := d.root.get(field)
	if n == nil {
		return ""
	}
	s, _ := n.scalar.(string)
	return s
}
