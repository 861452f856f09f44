from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('services', '0015_auditors'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='job',
            index=models.Index(fields=['source', '-queued_at', '-id'], name='services_job_by_source'),
        ),
    ]
