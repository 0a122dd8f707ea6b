/* Stand-ins for two elements of NVIDIA's Jetson, so that the Jetson's own pipeline string runs on any Linux machine:
 *
 *   nvarguscamerasrc  a sensor on an exact time grid, NV12 in caps that say memory:NVMM (over plain memory). As there, the
 *                     buffer's PTS is the time of arrival, and the sensor's own time and frame number hang on the buffer
 *                     as qdata "GstBufferMetaData".
 *   nvvidconv         takes the pictures out of "NVMM", converts and scales them.
 *
 * Written from the public list of properties; nothing of NVIDIA's is in here. Luma tells the frame number (see `LUMA`).
 *
 * The environment's FAKEARGUS="key=value,..." is read when the camera starts:
 *   latency_ms, jitter_ms   between the sensor's time and arrival; the jitter is uniform
 *   drop_every              frame numbers divisible by this are never delivered
 *   fail_after, eos_after, stall_after   frames until an error, the end, a silence of stall_s seconds while the sensor
 *                           goes on counting
 *   nocam                   1: "No cameras available" as an error, 2: the stream ends at once, as some releases do
 *   clock_s                 the sensor's clock minus the monotonic one
 *   no_meta                 no qdata on frames whose number is divisible by this
 *   pad                     bytes that nvvidconv adds to each of its rows
 *   hang_start_s, hang_stop_s   how long the driver does not come back when started or stopped
 * FAKEARGUS_LOG names a file that receives "element property value frames-so-far" for each property set, and
 * "start" and "stop".
 *
 * gcc -shared -fPIC -O2 fakeargus.c -o libgstfakeargus.so $(pkg-config --cflags --libs gstreamer-video-1.0) */

#include <gst/base/gstbasetransform.h>
#include <gst/base/gstpushsrc.h>
#include <gst/gst.h>
#include <gst/video/video.h>
#include <stdio.h>
#include <string.h>

#define NVMM "memory:NVMM"
#define LUMA(number) ((guint8)(30 + 4 * ((number) % 50)))
#define SIZES "width=(int)[1,8192], height=(int)[1,8192], framerate=(fraction)[0,1000]"

static gdouble asked(const gchar *key, gdouble otherwise) {
  gchar **pairs = g_strsplit(g_getenv("FAKEARGUS") ? g_getenv("FAKEARGUS") : "", ",", 0);
  gdouble value = otherwise;
  for (gchar **pair = pairs; *pair; pair++) {
    gchar *equals = strchr(*pair, '=');
    if (equals && strlen(key) == (gsize)(equals - *pair) && g_str_has_prefix(*pair, key))
      value = g_ascii_strtod(equals + 1, NULL);
  }
  g_strfreev(pairs);
  return value;
}

static void tell(const gchar *element, const gchar *what, const gchar *value, gint64 frames) {
  FILE *log = g_getenv("FAKEARGUS_LOG") ? fopen(g_getenv("FAKEARGUS_LOG"), "a") : NULL;
  if (!log) return;
  fprintf(log, "%s %s %s %" G_GINT64_FORMAT "\n", element, what, value, frames);
  fclose(log);
}

static void free_value(gpointer value) {
  g_value_unset(value);
  g_free(value);
}

/* Keeps what was set under the property's name, whatever it is: only the caller looks at it. */
static void keep(GObject *object, const GValue *value, GParamSpec *spec, const gchar *element, gint64 frames) {
  gchar *text = g_strdup_value_contents(value);
  GValue *copy = g_new0(GValue, 1);
  g_value_init(copy, G_VALUE_TYPE(value));
  g_value_copy(value, copy);
  g_object_set_data_full(object, spec->name, copy, free_value);
  tell(element, spec->name, text, frames);
  g_free(text);
}

static void kept(GObject *object, guint id, GValue *value, GParamSpec *spec) {
  const GValue *copy = g_object_get_data(object, spec->name);
  if (copy) g_value_copy(copy, value);
  else g_param_value_set_default(spec, value);
}

static void add_ints(GObjectClass *klass, guint *id, const gchar *const *names, gint low, gint high, gint otherwise) {
  for (; *names; names++)
    g_object_class_install_property(klass, (*id)++, g_param_spec_int(*names, *names, *names, low, high, otherwise,
                                                                     G_PARAM_READWRITE));
}

/* ---- nvarguscamerasrc */

typedef struct {
  gint64 frame_num, timestamp;
} Meta;

typedef struct {
  GstPushSrc parent;
  GstVideoInfo info;
  gint64 number, delivered, period_ns, next_ns;
  gboolean flushing;
  guint seed;
} Camera;

typedef struct {
  GstPushSrcClass parent;
} CameraClass;

G_DEFINE_TYPE(Camera, camera, GST_TYPE_PUSH_SRC)

static GstStaticPadTemplate camera_src = GST_STATIC_PAD_TEMPLATE("src", GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("video/x-raw(" NVMM "), format=(string)NV12, " SIZES));

static gint64 now_ns(void) { return g_get_monotonic_time() * 1000; }

static void wait_s(Camera *camera, gdouble seconds) {
  for (gint64 until = now_ns() + (gint64)(seconds * 1e9); now_ns() < until && !(camera && camera->flushing);)
    g_usleep(MIN(5000, MAX(1, (until - now_ns()) / 1000)));
}

static void camera_set(GObject *object, guint id, const GValue *value, GParamSpec *spec) {
  keep(object, value, spec, "camera", ((Camera *)object)->delivered);
}

static gboolean camera_caps(GstBaseSrc *src, GstCaps *caps) {
  Camera *camera = (Camera *)src;
  if (!gst_video_info_from_caps(&camera->info, caps)) return FALSE;
  gint rate = camera->info.fps_n ? camera->info.fps_n : 30, per = camera->info.fps_n ? camera->info.fps_d : 1;
  camera->period_ns = gst_util_uint64_scale(GST_SECOND, per, rate);
  return TRUE;
}

static GstCaps *camera_fixate(GstBaseSrc *src, GstCaps *caps) {
  GstStructure *one = gst_caps_get_structure(caps = gst_caps_make_writable(caps), 0);
  gst_structure_fixate_field_nearest_int(one, "width", 1920);
  gst_structure_fixate_field_nearest_int(one, "height", 1080);
  gst_structure_fixate_field_nearest_fraction(one, "framerate", 30, 1);
  return gst_caps_fixate(caps);
}

static gboolean camera_start(GstBaseSrc *src) {
  Camera *camera = (Camera *)src;
  tell("camera", "start", "-", 0);
  camera->number = camera->delivered = camera->next_ns = 0;
  camera->seed = 7;
  wait_s(NULL, asked("hang_start_s", 0));
  if (asked("nocam", 0) == 1) {
    GST_ELEMENT_ERROR(camera, RESOURCE, NOT_FOUND, ("No cameras available"), (NULL));
    return FALSE;
  }
  return TRUE;
}

static gboolean camera_stop(GstBaseSrc *src) {
  wait_s(NULL, asked("hang_stop_s", 0));
  tell("camera", "stop", "-", ((Camera *)src)->delivered);
  return TRUE;
}

static gboolean camera_unlock(GstBaseSrc *src) {
  ((Camera *)src)->flushing = TRUE;
  return TRUE;
}

static gboolean camera_unlock_stop(GstBaseSrc *src) {
  ((Camera *)src)->flushing = FALSE;
  return TRUE;
}

static void paint(Camera *camera, GstBuffer *buffer) {
  GstVideoFrame frame;
  if (!gst_video_frame_map(&frame, &camera->info, buffer, GST_MAP_WRITE)) return;
  memset(GST_VIDEO_FRAME_PLANE_DATA(&frame, 0), LUMA(camera->number),
         (gsize)GST_VIDEO_FRAME_PLANE_STRIDE(&frame, 0) * GST_VIDEO_FRAME_HEIGHT(&frame));
  /* neutral chroma, so that the picture is grey; but the last rows are red: a skewed or cut picture shows */
  guint8 *chroma = GST_VIDEO_FRAME_PLANE_DATA(&frame, 1);
  gint stride = GST_VIDEO_FRAME_PLANE_STRIDE(&frame, 1), rows = (GST_VIDEO_FRAME_HEIGHT(&frame) + 1) / 2;
  memset(chroma, 128, (gsize)stride * rows);
  for (gint x = 1; x < stride; x += 2) chroma[stride * (rows - 1) + x] = 220;
  gst_video_frame_unmap(&frame);
}

static GstFlowReturn camera_create(GstPushSrc *src, GstBuffer **out) {
  Camera *camera = (Camera *)src;
  if (asked("nocam", 0) == 2 || camera->delivered == (gint64)asked("eos_after", -1)) return GST_FLOW_EOS;
  if (camera->delivered == (gint64)asked("fail_after", -1)) {
    GST_ELEMENT_ERROR(camera, RESOURCE, READ, ("Failed to create CaptureSession"), ("stand-in"));
    return GST_FLOW_ERROR;
  }
  if (camera->delivered == (gint64)asked("stall_after", -1)) {
    wait_s(camera, asked("stall_s", 600));
    for (; camera->next_ns && camera->next_ns < now_ns(); camera->number++) camera->next_ns += camera->period_ns;
  }
  if (!camera->next_ns) camera->next_ns = now_ns() + camera->period_ns;
  gint64 every = (gint64)asked("drop_every", 0), bare = (gint64)asked("no_meta", 0);
  do {
    camera->number++;
    camera->next_ns += camera->period_ns;
  } while (camera->flushing == FALSE && every && camera->number % every == 0);
  gdouble jitter = asked("jitter_ms", 0) * rand_r(&camera->seed) / RAND_MAX;
  wait_s(camera, (camera->next_ns - now_ns()) / 1e9 + (asked("latency_ms", 5) + jitter) / 1e3);
  if (camera->flushing) return GST_FLOW_FLUSHING;

  GstBuffer *buffer = gst_buffer_new_allocate(NULL, GST_VIDEO_INFO_SIZE(&camera->info), NULL);
  paint(camera, buffer);
  if (!bare || camera->number % bare) {
    Meta *meta = g_new(Meta, 1);
    meta->frame_num = camera->number;
    meta->timestamp = camera->next_ns + (gint64)(asked("clock_s", 0) * 1e9);
    gst_mini_object_set_qdata(GST_MINI_OBJECT_CAST(buffer), g_quark_from_static_string("GstBufferMetaData"), meta, g_free);
  }
  camera->delivered++;
  *out = buffer;
  return GST_FLOW_OK;
}

static void camera_init(Camera *camera) {
  gst_base_src_set_live(GST_BASE_SRC(camera), TRUE);
  gst_base_src_set_format(GST_BASE_SRC(camera), GST_FORMAT_TIME);
  gst_base_src_set_do_timestamp(GST_BASE_SRC(camera), TRUE);
}

static void camera_class_init(CameraClass *klass) {
  static const gchar *const texts[] = {"exposuretimerange", "gainrange", "ispdigitalgainrange", "aeregion"};
  static const gchar *const locks[] = {"aelock", "awblock", "silent"};
  static const gchar *const modes[] = {"tnr-mode", "ee-mode", NULL}, *const wb[] = {"wbmode", NULL},
                     *const sensor[] = {"sensor-mode", NULL}, *const id_only[] = {"sensor-id", NULL},
                     *const banding[] = {"aeantibanding", NULL};
  GObjectClass *object = G_OBJECT_CLASS(klass);
  GstBaseSrcClass *base = GST_BASE_SRC_CLASS(klass);
  guint id = 1;
  object->set_property = camera_set;
  object->get_property = kept;
  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_object_class_install_property(object, id++, g_param_spec_string(texts[i], texts[i], texts[i], NULL, G_PARAM_READWRITE));
  for (guint i = 0; i < G_N_ELEMENTS(locks); i++)
    g_object_class_install_property(object, id++, g_param_spec_boolean(locks[i], locks[i], locks[i], FALSE,
                                                                       G_PARAM_READWRITE));
  add_ints(object, &id, modes, 0, 2, 1);
  add_ints(object, &id, wb, 0, 9, 1);
  add_ints(object, &id, banding, 0, 3, 1);
  add_ints(object, &id, sensor, -1, 255, -1);
  add_ints(object, &id, id_only, 0, 255, 0);
  gst_element_class_add_static_pad_template(GST_ELEMENT_CLASS(klass), &camera_src);
  gst_element_class_set_static_metadata(GST_ELEMENT_CLASS(klass), "Stand-in for nvarguscamerasrc", "Source/Video",
                                        "Pictures that tell their number", "PhysVLM Edge");
  base->set_caps = camera_caps;
  base->fixate = camera_fixate;
  base->start = camera_start;
  base->stop = camera_stop;
  base->unlock = camera_unlock;
  base->unlock_stop = camera_unlock_stop;
  GST_PUSH_SRC_CLASS(klass)->create = camera_create;
}

/* ---- nvvidconv */

typedef struct {
  GstBaseTransform parent;
  GstVideoInfo in, out;
  GstVideoConverter *converter;
} Converter;

typedef struct {
  GstBaseTransformClass parent;
} ConverterClass;

G_DEFINE_TYPE(Converter, converter, GST_TYPE_BASE_TRANSFORM)

#define FORMATS "format=(string){ NV12, I420, BGRx, RGBA, GRAY8, UYVY, YUY2 }, " SIZES
static GstStaticPadTemplate converter_sink = GST_STATIC_PAD_TEMPLATE("sink", GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("video/x-raw(" NVMM "), " FORMATS "; video/x-raw, " FORMATS));
static GstStaticPadTemplate converter_src = GST_STATIC_PAD_TEMPLATE("src", GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS("video/x-raw, " FORMATS));

static void converter_set(GObject *object, guint id, const GValue *value, GParamSpec *spec) {
  keep(object, value, spec, "converter", 0);
}

/* Any size and format on the other side, the same rate. */
static GstCaps *converter_others(GstBaseTransform *self, GstPadDirection from, GstCaps *caps, GstCaps *filter) {
  GstCaps *pattern = gst_static_pad_template_get_caps(from == GST_PAD_SRC ? &converter_sink : &converter_src);
  GstCaps *others = gst_caps_new_empty();
  for (guint i = 0; i < gst_caps_get_size(caps); i++) {
    GstCaps *some = gst_caps_copy(pattern);
    const GValue *rate = gst_structure_get_value(gst_caps_get_structure(caps, i), "framerate");
    if (rate) gst_caps_set_value(some, "framerate", rate);
    others = gst_caps_merge(others, some);
  }
  gst_caps_unref(pattern);
  if (filter) {
    GstCaps *wanted = gst_caps_intersect_full(filter, others, GST_CAPS_INTERSECT_FIRST);
    gst_caps_unref(others);
    others = wanted;
  }
  return others;
}

static GstCaps *converter_fixate(GstBaseTransform *self, GstPadDirection from, GstCaps *caps, GstCaps *others) {
  GstStructure *here = gst_caps_get_structure(caps, 0);
  gint width = 640, height = 480;
  gst_structure_get_int(here, "width", &width);
  gst_structure_get_int(here, "height", &height);
  GstStructure *there = gst_caps_get_structure(others = gst_caps_make_writable(gst_caps_truncate(others)), 0);
  gst_structure_fixate_field_nearest_int(there, "width", width);
  gst_structure_fixate_field_nearest_int(there, "height", height);
  return gst_caps_fixate(others);
}

static void forget_converter(Converter *self) {
  if (self->converter) gst_video_converter_free(self->converter);
  self->converter = NULL;
}

static gboolean converter_caps(GstBaseTransform *base, GstCaps *in, GstCaps *out) {
  Converter *self = (Converter *)base;
  if (!gst_video_info_from_caps(&self->in, in) || !gst_video_info_from_caps(&self->out, out)) return FALSE;
  gint pad = (gint)asked("pad", 0);
  if (pad) { /* rows longer than the picture: only the buffer's GstVideoMeta says so */
    self->out.stride[0] += pad;
    self->out.size = (gsize)self->out.stride[0] * self->out.height;
  }
  forget_converter(self);
  self->converter = gst_video_converter_new(&self->in, &self->out, NULL);
  return self->converter != NULL;
}

static gboolean converter_stop(GstBaseTransform *base) {
  forget_converter((Converter *)base);
  return TRUE;
}

static gboolean converter_size(GstBaseTransform *base, GstPadDirection from, GstCaps *caps, gsize size, GstCaps *others,
                               gsize *other_size) {
  GstVideoInfo info;
  if (!gst_video_info_from_caps(&info, others)) return FALSE;
  *other_size = info.size + (from == GST_PAD_SINK ? (gsize)asked("pad", 0) * info.height : 0);
  return TRUE;
}

static GstFlowReturn converter_transform(GstBaseTransform *base, GstBuffer *in, GstBuffer *out) {
  Converter *self = (Converter *)base;
  GstVideoFrame from, to;
  GstVideoInfo *info = &self->out;
  if (asked("pad", 0))
    gst_buffer_add_video_meta_full(out, 0, GST_VIDEO_INFO_FORMAT(info), info->width, info->height, 1, info->offset, info->stride);
  if (!gst_video_frame_map(&from, &self->in, in, GST_MAP_READ)) return GST_FLOW_ERROR;
  if (!gst_video_frame_map(&to, info, out, GST_MAP_WRITE)) {
    gst_video_frame_unmap(&from);
    return GST_FLOW_ERROR;
  }
  gst_video_converter_frame(self->converter, &from, &to);
  gst_video_frame_unmap(&from);
  gst_video_frame_unmap(&to);
  return GST_FLOW_OK;
}

static void converter_init(Converter *self) {}

static void converter_class_init(ConverterClass *klass) {
  static const gchar *const names[] = {"flip-method", "interpolation-method", NULL};
  GstBaseTransformClass *base = GST_BASE_TRANSFORM_CLASS(klass);
  GstElementClass *element = GST_ELEMENT_CLASS(klass);
  guint id = 1;
  G_OBJECT_CLASS(klass)->set_property = converter_set;
  G_OBJECT_CLASS(klass)->get_property = kept;
  add_ints(G_OBJECT_CLASS(klass), &id, names, 0, 7, 0);
  gst_element_class_add_static_pad_template(element, &converter_sink);
  gst_element_class_add_static_pad_template(element, &converter_src);
  gst_element_class_set_static_metadata(element, "Stand-in for nvvidconv", "Filter/Converter/Video",
                                        "Converts and scales on the CPU", "PhysVLM Edge");
  base->transform_caps = converter_others;
  base->fixate_caps = converter_fixate;
  base->set_caps = converter_caps;
  base->stop = converter_stop;
  base->transform_size = converter_size;
  base->transform = converter_transform;
}

static gboolean plugin_init(GstPlugin *plugin) {
  return gst_element_register(plugin, "nvarguscamerasrc", GST_RANK_NONE, camera_get_type()) &&
         gst_element_register(plugin, "nvvidconv", GST_RANK_NONE, converter_get_type());
}

#define PACKAGE "fakeargus"
GST_PLUGIN_DEFINE(GST_VERSION_MAJOR, GST_VERSION_MINOR, fakeargus, "Stand-ins for a Jetson's camera elements", plugin_init,
                  "1.0", "Proprietary", "fakeargus", "https://example.invalid")
