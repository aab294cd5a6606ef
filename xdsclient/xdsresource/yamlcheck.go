package xdsresource

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const typedStructURL = typePrefix + "xds.type.v3.TypedStruct"

// checker walks a document along the descriptors of a message.
type checker struct{ problems []Problem }

func (c *checker) problem(n *node, path, format string, args ...any) {
	if len(c.problems) < 100 {
		c.problems = append(c.problems, Problem{path, n.line, fmt.Sprintf(format, args...)})
	}
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// message returns what protojson is to read for n.
func (c *checker) message(n *node, md protoreflect.MessageDescriptor, path string) any {
	switch {
	case n.kind == scalarNode && n.scalar == nil:
		return nil
	case md.FullName() == "google.protobuf.Any":
		return c.any(n, path)
	case md.ParentFile().Package() == "google.protobuf":
		return c.wellKnown(n, md, path)
	case n.kind != mapNode:
		c.problem(n, path, "want a mapping with the fields of %s", md.FullName())
		return nil
	}
	out := make(map[string]any, len(n.keys))
	oneofs := map[protoreflect.Name]string{}
	for i, key := range n.keys {
		c.field(out, oneofs, n.values[i], md, key, path)
	}
	return out
}

// wellKnown checks a value with a form of its own, such as a duration.
func (c *checker) wellKnown(n *node, md protoreflect.MessageDescriptor, path string) any {
	v := n.plain()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		return v
	}
	j, err := json.Marshal(v)
	if err == nil {
		err = protojson.Unmarshal(j, mt.New().Interface())
	}
	switch {
	case err == nil:
	case md.Name() == "Duration":
		c.problem(n, path, "want seconds, such as 10s or 0.5s, not %s", j)
	default:
		c.problem(n, path, "%s is no %s", j, md.Name())
	}
	return v
}

func (c *checker) field(out map[string]any, oneofs map[protoreflect.Name]string, v *node, md protoreflect.MessageDescriptor, key, path string) {
	fd := md.Fields().ByTextName(key)
	if fd == nil {
		fd = md.Fields().ByJSONName(key)
	}
	at := join(path, key)
	if fd == nil {
		hint := ""
		if s := closest(snake(key), fieldNames(md)); s != "" {
			hint = fmt.Sprintf(": did you mean %s?", s)
		}
		c.problem(v, at, "%s has no such field%s", md.Name(), hint)
		return
	}
	name := string(fd.Name())
	if _, dup := out[name]; dup {
		c.problem(v, at, "is set twice")
		return
	}
	if v.kind == scalarNode && v.scalar == nil {
		return
	}
	if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
		if other := oneofs[o.Name()]; other != "" {
			c.problem(v, at, "only one of %s and %s may be set", other, name)
		}
		oneofs[o.Name()] = name
	}
	switch {
	case fd.IsMap():
		out[name] = c.mapField(v, fd, at)
	case fd.IsList():
		out[name] = c.listField(v, fd, at)
	default:
		out[name] = c.single(v, fd, at)
	}
}

func fieldNames(md protoreflect.MessageDescriptor) []string {
	fs := md.Fields()
	names := make([]string, 0, fs.Len())
	for i := range fs.Len() {
		names = append(names, string(fs.Get(i).Name()))
	}
	return names
}

func (c *checker) mapField(v *node, fd protoreflect.FieldDescriptor, at string) any {
	if v.kind != mapNode {
		c.problem(v, at, "want a mapping")
		return nil
	}
	m := make(map[string]any, len(v.keys))
	for i, k := range v.keys {
		if _, dup := m[k]; dup {
			c.problem(v.values[i], at, "key %q is set twice", k)
		}
		m[k] = c.single(v.values[i], fd.MapValue(), at+"["+strconv.Quote(k)+"]")
	}
	return m
}

func (c *checker) listField(v *node, fd protoreflect.FieldDescriptor, at string) any {
	if v.kind != listNode {
		c.problem(v, at, "want a list")
		return nil
	}
	l := make([]any, 0, len(v.values))
	for i, e := range v.values {
		l = append(l, c.single(e, fd, at+"["+strconv.Itoa(i)+"]"))
	}
	return l
}

func (c *checker) single(v *node, fd protoreflect.FieldDescriptor, at string) any {
	if md := fd.Message(); md != nil {
		return c.message(v, md, at)
	}
	if v.kind != scalarNode {
		c.problem(v, at, "want a single value (%s)", fd.Kind())
		return nil
	}
	switch fd.Kind() {
	case protoreflect.EnumKind:
		c.enum(v, fd.Enum(), at)
	case protoreflect.StringKind, protoreflect.BytesKind:
		if _, ok := v.scalar.(string); !ok {
			c.problem(v, at, "want a string: put %v in quotes", v.scalar)
		}
	case protoreflect.BoolKind:
		if _, ok := v.scalar.(bool); !ok {
			c.problem(v, at, "want true or false, not %q", fmt.Sprint(v.scalar))
		}
	default:
		c.number(v, fd, at)
	}
	return v.scalar
}

func (c *checker) enum(v *node, ed protoreflect.EnumDescriptor, at string) {
	s, ok := v.scalar.(string)
	if !ok || ed.Values().ByName(protoreflect.Name(s)) != nil {
		return
	}
	names := make([]string, 0, ed.Values().Len())
	for i := range ed.Values().Len() {
		names = append(names, string(ed.Values().Get(i).Name()))
	}
	c.problem(v, at, "%q is none of %s", s, strings.Join(names, ", "))
}

func (c *checker) number(v *node, fd protoreflect.FieldDescriptor, at string) {
	text := fmt.Sprint(v.scalar)
	if _, ok := v.scalar.(bool); ok {
		text = "?"
	}
	var err error
	switch fd.Kind() {
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		_, err = strconv.ParseFloat(text, 64)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		_, err = strconv.ParseUint(text, 10, 32)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		_, err = strconv.ParseUint(text, 10, 64)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		_, err = strconv.ParseInt(text, 10, 32)
	default:
		_, err = strconv.ParseInt(text, 10, 64)
	}
	if err != nil && !strings.ContainsAny(text, ".eE") {
		c.problem(v, at, "want a number (%s), not %q", fd.Kind(), fmt.Sprint(v.scalar))
	}
}

// any checks an Any by its "@type".
func (c *checker) any(n *node, path string) any {
	if n.kind != mapNode {
		c.problem(n, path, `want a mapping with "@type"`)
		return nil
	}
	t := n.get("@type")
	if t == nil {
		if len(n.keys) > 0 {
			c.problem(n, path, `"@type" is missing`)
		}
		return map[string]any{}
	}
	url, ok := t.scalar.(string)
	if !ok || !strings.Contains(url, "/") {
		c.problem(t, join(path, "@type"), "want a type URL like %senvoy.…", typePrefix)
		return nil
	}
	body := n.without("@type")
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return map[string]any{"@type": typedStructURL, "type_url": url, "value": body.plain()}
	}
	md := mt.Descriptor()
	if md.ParentFile().Package() == "google.protobuf" {
		return n.plain()
	}
	out, _ := c.message(body, md, path).(map[string]any)
	if out == nil {
		out = map[string]any{}
	}
	out["@type"] = url
	return out
}
